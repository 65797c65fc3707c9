"""Tree shaking: keep the definitions that a program's entry point can reach, found by name without running anything.

A definition at the top of a module (function, class, constant, import) is kept when kept code in the same module
mentions its name, imports it, or reads it as an attribute of the module. A method is kept when kept code anywhere
mentions its name as an attribute or as a string. Statements with side effects are always kept.

Three limits. Names composed at run time are not seen. An import whose name is not used is removed, even if importing
that module has an effect. Annotations do not count as uses: those of functions are removed, except under decorators
that may read them, and those of class attributes become `int`, since dataclasses and named tuples read only that there
is one (and whether it is a ClassVar or InitVar, which are kept).
"""

import ast
import re
from collections.abc import Collection, Iterator

from pgolf.bundle.module_graph import BundleError, SourceModule, bound, read_module

# Decorators and calls without side effects: a definition that uses no others is removed when its name is not used.
_PURE_DECORATORS = {
    "dataclass", "property", "cached_property", "staticmethod", "classmethod", "contextmanager", "cache", "lru_cache",
    "no_grad", "inference_mode", "overload", "wraps", "jit", "njit", "runtime_checkable",
}  # fmt: skip
_PURE_CALLS = {
    "frozenset", "set", "dict", "tuple", "list", "range", "compile", "TypeVar", "Struct", "field", "log",
}  # fmt: skip

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_SPECIAL = re.compile("ClassVar|InitVar|KW_ONLY")  # annotations that dataclasses read

# Stub of a module that is left out: any name can be imported from it, and using one raises.
_ABSENT = """\
def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    def absent(*arguments, **named):
        raise ImportError(f"{name} was left out of this program")
    return type(name, (), {"__new__": absent})
"""


def shake(
    entry: str,
    names: Collection[str],
    roots: Collection[str],
    without_methods: Collection[str] = (),
    without_modules: Collection[str] = (),
) -> list[tuple[SourceModule, ast.Module]]:
    """The modules needed to use `names` of the module `entry`, by name, with the remaining syntax tree of each.

    roots: the packages whose modules are followed. without_methods: names of methods to remove whoever mentions them.
    without_modules: modules to replace by one that raises ImportError when something of it is used.
    Raises BundleError when the entry does not exist.
    """
    shaker = _Shaker(roots, without_methods, without_modules)
    if not shaker.reach(entry, names):
        raise BundleError(f"module {entry} not found in {', '.join(sorted(roots))}")
    while shaker.changed:
        shaker.changed = False
        for state in list(shaker.states.values()):
            for node in _statements(state.module.tree.body):
                shaker.visit(state, node)
    return [(state.module, state.rest()) for _, state in sorted(shaker.states.items())]


class _State:
    """The definitions of a module that are known to be used so far."""

    def __init__(self, module: SourceModule) -> None:
        self.module = module
        self.used: set[str] = set()
        """Names used by kept code of the module, or imported by other modules."""
        self.kept: set[int] = set()
        """Identities of the syntax nodes to keep."""

    def rest(self) -> ast.Module:
        body = [kept for node in _statements(self.module.tree.body) if (kept := self._rest(node)) is not None]
        for node in (inside for statement in body for inside in ast.walk(statement)):
            if isinstance(node, _Function) and _is_plain(node):
                node.returns = None
                for argument in _arguments(node):
                    argument.annotation = None
            if isinstance(node, ast.Call) and _last_name(node) in ("njit", "jit"):
                # numba caches compiled code next to the source file; a bundled module has no source file.
                node.keywords = [keyword for keyword in node.keywords if keyword.arg != "cache"]
        return ast.Module(body, [])

    def _rest(self, node: ast.stmt) -> ast.stmt | None:
        if isinstance(node, ast.Import | ast.ImportFrom):
            node.names = [alias for alias in node.names if id(alias) in self.kept]
            return node if node.names else None
        if id(node) not in self.kept:
            return None
        if isinstance(node, ast.ClassDef):
            removed = {id(method) for method in _removable_methods(node) if id(method) not in self.kept}
            node.body = [item for item in node.body if id(item) not in removed] or [ast.Pass()]
        return node


class _Shaker:
    def __init__(
        self, roots: Collection[str], without_methods: Collection[str], without_modules: Collection[str]
    ) -> None:
        self.roots, self.without_methods, self.without_modules = roots, without_methods, without_modules
        self.states: dict[str, _State] = {}
        self.missing: set[str] = set()
        """Names other than modules."""
        self.attributes: set[str] = set()
        """Names that kept code mentions as attributes or strings."""
        self.changed = True

    def reach(self, name: str, names: Collection[str] = ()) -> bool:
        """Add a module, its parent packages and the `names` used of it ("*": all); False if there is none."""
        if name not in self.states:
            module = None if name in self.missing else read_module(name, self.roots)
            if module is None:
                self.missing.add(name)
                return False
            self.reach(name.rpartition(".")[0])
            if name in self.without_modules:
                module = SourceModule(name, _ABSENT, False)
            for node in ast.walk(module.tree):
                if isinstance(node, ast.ClassDef):
                    kept = [item for item in node.body if getattr(item, "name", None) not in self.without_methods]
                    node.body = kept or [ast.Pass()]
                    for item in kept:
                        if isinstance(item, ast.AnnAssign) and not _SPECIAL.search(ast.unparse(item.annotation)):
                            item.annotation = ast.Name("int", ast.Load())
            self.states[name] = _State(module)
            self.changed = True
        state = self.states[name]
        if name in self.without_modules:
            names = ("__getattr__",)
        for one in names:
            if one == "*":
                self.reach(name, _defined(state.module) - state.used)
            elif one not in state.used:
                self.reach(f"{name}.{one}")
                state.used.add(one)
                self.changed = True
        return True

    def visit(self, state: _State, node: ast.stmt) -> None:
        """Keep a top-level statement, or its newly used parts."""
        if isinstance(node, ast.ClassDef) and id(node) in state.kept:
            for method in _removable_methods(node):
                if id(method) not in state.kept and method.name in self.attributes:
                    self._keep(state, method)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for module, alias in state.module.imports(node):
                used = bound(alias) in state.used or alias.name == "*" or module == "__future__"
                if used and id(alias) not in state.kept:
                    state.kept.add(id(alias))
                    self._follow(node, module, alias)
        elif id(node) not in state.kept:
            names = _names(node)
            if names is None or not state.used.isdisjoint(names):
                self._keep(state, node)

    def _keep(self, state: _State, node: ast.AST) -> None:
        state.kept.add(id(node))
        self.changed = True
        owners = set()  # names that are only the left side of `module.attribute`
        for inside in _mentions(node):
            if isinstance(inside, ast.Attribute):
                self.attributes.add(inside.attr)
                parts = ast.unparse(inside).split(".")
                if parts[0] in state.module.aliases:
                    self._attribute(state.module.aliases[parts[0]], parts[1:])
                owners.add(id(inside.value))
            elif isinstance(inside, ast.Name):
                state.used.add(inside.id)
                if id(inside) not in owners and (target := state.module.aliases.get(inside.id)):
                    self.reach(target, "*")  # a module that is used as a value: by which names is not known
            elif isinstance(inside, ast.Constant) and isinstance(inside.value, str) and inside.value.isidentifier():
                self.attributes.add(inside.value)
            elif isinstance(inside, ast.Import | ast.ImportFrom):
                for module, alias in state.module.imports(inside):
                    self._follow(inside, module, alias)

    def _attribute(self, target: str, parts: list[str]) -> None:
        """Resolve `a.b.c` where `a` is bound to the module `target`: `c` of the module `target.b`, if there is one."""
        for part in parts:
            if not self.reach(target, (part,)):
                return
            target = f"{target}.{part}"

    def _follow(self, node: ast.Import | ast.ImportFrom, module: str, alias: ast.alias) -> None:
        self.changed = True
        self.reach(module, (alias.name,) if isinstance(node, ast.ImportFrom) else ())


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # docstrings
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        yield node


def _defined(module: SourceModule) -> set[str]:
    """Every name that the top level of a module defines or imports."""
    nodes = [inside for node in module.tree.body for inside in _top_level(node)]
    found = {bound(alias) for node in nodes for _, alias in module.imports(node)}
    for node in nodes:
        if isinstance(node, _Function | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


def _top_level(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    if not isinstance(node, _Function | ast.ClassDef):
        for child in ast.iter_child_nodes(node):
            yield from _top_level(child)


def _names(node: ast.stmt) -> set[str] | None:
    """The names that a statement defines if that is all it does; None when it has an effect and must stay."""
    if isinstance(node, _Function | ast.ClassDef):
        return {node.name} if _is_plain(node) else None
    if not isinstance(node, ast.Assign | ast.AnnAssign):
        return None
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    calls = [call for call in ast.walk(node) if isinstance(call, ast.Call)]
    plain = all(isinstance(target, ast.Name | ast.Tuple) for target in targets)
    if not plain or any(_last_name(call) not in _PURE_CALLS for call in calls):
        return None
    return {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}


def _removable_methods(node: ast.ClassDef) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Methods to remove when nothing mentions them: not special ones, nor those that a foreign base may call."""
    if any(isinstance(base, ast.Attribute) for base in node.bases):
        return []
    methods = [item for item in node.body if isinstance(item, _Function)]
    return [method for method in methods if not method.name.startswith("__") and _is_plain(method)]


def _mentions(node: ast.AST, skipped: frozenset[int] = frozenset()) -> Iterator[ast.AST]:
    """Every node in a statement except removed annotations and removable methods; an attribute before its parts."""
    yield node
    if isinstance(node, _Function) and _is_plain(node):
        annotations = [node.returns, *(argument.annotation for argument in _arguments(node))]
        skipped |= {id(annotation) for annotation in annotations if annotation is not None}
    elif isinstance(node, ast.ClassDef):
        skipped |= {id(method) for method in _removable_methods(node)}
    for child in ast.iter_child_nodes(node):
        if id(child) not in skipped:
            yield from _mentions(child, skipped)


def _arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.arg]:
    found = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
    return [argument for argument in found if argument is not None]


def _is_plain(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
    return all(_last_name(decorator) in _PURE_DECORATORS for decorator in node.decorator_list)


def _last_name(node: ast.expr) -> str:
    """`field` of `dataclasses.field(...)`: the last part of the name that is called."""
    if isinstance(node, ast.Call):
        return _last_name(node.func)
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
