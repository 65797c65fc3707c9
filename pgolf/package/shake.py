"""Which definitions of a program can ever be used: found from its entry point by name, without running anything.

Modules reached by imports hold more than one program needs. A function, class, constant or import at the top of a
module stays when something that stays mentions its name in its own module, imports it, or asks it of the module; a
method stays when anything mentions its name as an attribute or as a whole string (`getattr`). Annotations of
functions are no use of a name and go too, unless a decorator may read them. What this cannot see is a name put together
at run time. Statements with effects are always kept.
"""

import ast
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from pgolf.errors import PgolfError
from pgolf.package.imports import aliases, bound

# Decorators and calls that do nothing but make a value: what they make can go when nobody uses it.
_PURE_DECORATORS = {
    "dataclass", "property", "cached_property", "staticmethod", "classmethod", "contextmanager", "cache", "lru_cache",
    "no_grad", "inference_mode", "overload", "wraps", "jit", "njit", "runtime_checkable",
}  # fmt: skip
_PURE_CALLS = {"frozenset", "set", "dict", "tuple", "list", "range", "compile", "TypeVar", "Struct", "field", "log"}

_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass
class _Module:
    name: str
    tree: ast.Module
    local: set[str] = field(default_factory=set)
    """Names that its kept code mentions."""
    wanted: set[str] = field(default_factory=set)
    """Names that kept code of other modules imports from it."""
    kept: set[int] = field(default_factory=set)
    """Identities of the syntax nodes that stay."""
    aliases: dict[str, str] = field(default_factory=dict)
    """What names that may stand for a module stand for, if they do."""


class _Shaker:
    def __init__(self, sources: Mapping[str, str]) -> None:
        self.sources = sources
        self.modules: dict[str, _Module] = {}
        self.attributes: set[str] = set()
        self.changed = True

    def reach(self, name: str, wanted: Collection[str] = ()) -> None:
        """Take in a module, its parents, and the names somebody wants of it."""
        if name not in self.sources:
            return
        if name not in self.modules:
            parent = name.rpartition(".")[0]
            self.reach(parent)
            tree = ast.parse(self.sources[name])
            self.modules[name] = _Module(name, tree, aliases=aliases(tree))
            self.changed = True
        module = self.modules[name]
        for one in wanted:
            self.reach(f"{name}.{one}")
            if one not in module.wanted:
                module.wanted.add(one)
                self.changed = True

    def settle(self) -> None:
        """Keep what is used until nothing more is."""
        while self.changed:
            self.changed = False
            for module in list(self.modules.values()):
                for node in _statements(module.tree.body):
                    self._visit(module, node)

    def _visit(self, module: _Module, node: ast.stmt) -> None:
        if isinstance(node, ast.ClassDef) and id(node) in module.kept:
            for method in _droppable_methods(node):
                if id(method) not in module.kept and method.name in self.attributes:
                    self._keep(module, method)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                if id(alias) not in module.kept and self._used(module, bound(alias)):
                    module.kept.add(id(alias))
                    self._import(node, alias)
        elif id(node) not in module.kept:
            names = _defines(node)
            if names is None or any(self._used(module, name) for name in names):
                self._keep(module, node)

    def _used(self, module: _Module, name: str) -> bool:
        return name in module.local or name in module.wanted

    def _keep(self, module: _Module, node: ast.AST) -> None:
        module.kept.add(id(node))
        self.changed = True
        for inside in _mentions(node):
            if isinstance(inside, ast.Name):
                module.local.add(inside.id)
            elif isinstance(inside, ast.Attribute):
                self.attributes.add(inside.attr)
                self._of_module(module, inside)
            elif isinstance(inside, ast.Constant):
                if isinstance(inside.value, str) and inside.value.isidentifier():
                    self.attributes.add(inside.value)
            elif isinstance(inside, ast.Import | ast.ImportFrom):
                for alias in inside.names:
                    self._import(inside, alias)

    def _of_module(self, module: _Module, node: ast.Attribute) -> None:
        """Want `attr` of the module that the rest of a dotted name stands for, if it stands for one."""
        parts = ast.unparse(node).split(".")
        target = ".".join([module.aliases.get(parts[0], ""), *parts[1:-1]])
        if target in self.sources and node.attr not in getattr(self.modules.get(target), "wanted", ()):
            self.reach(target, (node.attr,))

    def _import(self, node: ast.Import | ast.ImportFrom, alias: ast.alias) -> None:
        self.changed = True
        if isinstance(node, ast.Import):
            self.reach(alias.name)
        elif node.level or alias.name == "*":
            raise PgolfError(f"cannot pack {ast.unparse(node)!r}: only absolute imports of names can be followed")
        else:
            self.reach(node.module or "", (alias.name,))

    def result(self, module: _Module) -> str:
        body = [node for one in _statements(module.tree.body) if (node := self._rest(module, one)) is not None]
        for node in body:
            for inside in ast.walk(node):
                if isinstance(inside, ast.FunctionDef | ast.AsyncFunctionDef) and _is_plain(inside):
                    inside.returns = None
                    for argument in _arguments(inside):
                        argument.annotation = None
                if isinstance(inside, ast.Call) and _last_name(inside) in ("njit", "jit"):
                    # numba keeps its cache beside the source file, and there is none.
                    inside.keywords = [keyword for keyword in inside.keywords if keyword.arg != "cache"]
        return ast.unparse(ast.Module(body, [])) + "\n"

    def _rest(self, module: _Module, node: ast.stmt) -> ast.stmt | None:
        if isinstance(node, ast.Import | ast.ImportFrom):
            node.names = [alias for alias in node.names if id(alias) in module.kept]
            return node if node.names else None
        if id(node) not in module.kept:
            return None
        if isinstance(node, ast.ClassDef):
            gone = {id(method) for method in _droppable_methods(node) if id(method) not in module.kept}
            node.body = [item for item in node.body if id(item) not in gone] or [ast.Pass()]
        return node


def shake(sources: Mapping[str, str], entry: str, names: Collection[str]) -> dict[str, str]:
    """What is left of the modules `sources` for a program that calls `names` of the module `entry`, by module name.

    Comments are gone; statements are laid out anew. Raises PgolfError for relative and star imports.
    """
    shaker = _Shaker(sources)
    shaker.reach(entry, names)
    shaker.settle()
    return {name: shaker.result(shaker.modules[name]) for name in sorted(shaker.modules)}


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # docstrings
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        yield node


def _defines(node: ast.stmt) -> list[str] | None:
    """The names that a statement defines and does nothing else; None when it has an effect and must stay."""
    if isinstance(node, _Definition):
        return [node.name] if _is_plain(node) else None
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign):
        targets = [node.target]
    names = [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
    plain = all(isinstance(target, ast.Name | ast.Tuple) for target in targets)
    calls = [call for call in ast.walk(node) if isinstance(call, ast.Call)]
    if not names or not plain or any(_last_name(call) not in _PURE_CALLS for call in calls):
        return None
    return names


def _droppable_methods(node: ast.ClassDef) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Methods that go when nobody names them: not those that a foreign base class may call, nor special ones."""
    if any(isinstance(base, ast.Attribute) for base in node.bases):
        return []
    methods = [item for item in node.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [
        method
        for method in methods
        if not (method.name.startswith("__") and method.name.endswith("__")) and _is_plain(method)
    ]


def _mentions(node: ast.AST, skipped: frozenset[int] = frozenset()) -> Iterator[ast.AST]:
    """Everything in a statement but annotations that nobody reads, and the methods that may go.

    A decorator that is more than a wrapper may read the annotations of its function, as torch's `custom_op` does.
    """
    yield node
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _is_plain(node):
        annotations = [node.returns, *(argument.annotation for argument in _arguments(node))]
        skipped |= {id(annotation) for annotation in annotations if annotation is not None}
    elif isinstance(node, ast.ClassDef):
        skipped |= {id(method) for method in _droppable_methods(node)}
    for child in ast.iter_child_nodes(node):
        if id(child) not in skipped:
            yield from _mentions(child, skipped)


def _arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.arg]:
    found = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
    return [argument for argument in found if argument is not None]


def _is_plain(node: _Definition) -> bool:
    return all(_last_name(decorator) in _PURE_DECORATORS for decorator in node.decorator_list)


def _last_name(node: ast.expr) -> str:
    """`field` of `dataclasses.field(...)`: the last part of what is called or named."""
    if isinstance(node, ast.Call):
        return _last_name(node.func)
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
