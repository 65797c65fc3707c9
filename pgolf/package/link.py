"""Modules that run one after the other in one namespace, so that none has to import another.

A name that two modules define, and one that would hide a builtin or a local name where it is used, gets its module's
name in front. Imports of other libraries stay where they come first. Each module is still a file of its own in
tracebacks.
"""

import ast
import builtins
from collections import Counter
from collections.abc import Iterator, Mapping

from pgolf.errors import PgolfError
from pgolf.package.imports import bound

_Definition = tuple[str, str]
"""Module and name of something that a module defines; with an empty name, the module itself."""
_Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
_Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


def link(sources: Mapping[str, str], entry: str) -> dict[str, str]:
    """The modules in an order in which each finds what it needs, without imports of each other. Empty ones are gone.

    Raises PgolfError for what cannot be told apart in one namespace.
    """
    modules = {name: _Module(name, ast.parse(text), sources) for name, text in sources.items()}
    order = list(_order(entry, modules, set()))
    names = _names(modules)
    linked: dict[str, str] = {}
    imported: dict[str, str] = {}
    for name in order:
        tree = _Link(modules[name], modules, names, imported).visit(modules[name].tree)
        if text := ast.unparse(tree):
            linked[name] = text + "\n"
    return linked


class _Module:
    def __init__(self, name: str, tree: ast.Module, sources: Mapping[str, str]) -> None:
        self.name, self.tree = name, tree
        self.defined = set(_defined(tree.body))
        self.local = {one for node in ast.walk(tree) if isinstance(node, _Function) for one in _bound_in(node)}
        self.imported: dict[str, _Definition] = {}
        """What names stand for that are imported from the other modules."""
        self.foreign: dict[str, str] = {}
        self.needs: list[str] = []
        """Modules that it imports: at its top first, then those inside functions."""
        top = {id(node) for node in tree.body}
        for node in sorted(_imports(tree), key=lambda node: id(node) not in top):
            for alias in node.names:
                whole = alias.name if isinstance(node, ast.Import) else f"{node.module}.{alias.name}"
                source = whole if isinstance(node, ast.Import) else node.module or ""
                if source in sources and isinstance(node, ast.ImportFrom):
                    self.imported[bound(alias)] = (whole, "") if whole in sources else (source, alias.name)
                    self.needs.append(whole if whole in sources else source)
                elif id(node) in top:
                    self.foreign[bound(alias)] = (
                        whole if alias.asname or isinstance(node, ast.ImportFrom) else bound(alias)
                    )


def _order(name: str, modules: Mapping[str, _Module], seen: set[str]) -> Iterator[str]:
    if name not in seen:
        seen.add(name)
        for needed in modules[name].needs:
            yield from _order(needed, modules, seen)
        yield name


def _names(modules: Mapping[str, _Module]) -> dict[_Definition, str]:
    """What each definition is called in the one namespace."""
    counts = Counter(name for module in modules.values() for name in module.defined)
    foreign = {name for module in modules.values() for name in module.foreign}
    reached = {}  # definitions that other modules name in another way, and by what local names they might be hidden
    for module in modules.values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                owner, inner = module.imported.get(node.value.id, ("", "-"))
                if not inner and node.attr in module.local:
                    reached[_resolve(modules, owner, node.attr)] = True
        for name, (owner, inner) in module.imported.items():
            if inner and name != inner and inner in module.local:
                reached[_resolve(modules, owner, inner)] = True
    names: dict[_Definition, str] = {}
    for module in modules.values():
        for name in sorted(module.defined):
            plain = counts[name] == 1 and name not in foreign and not hasattr(builtins, name)
            plain = plain and (module.name, name) not in reached
            names[module.name, name] = name if plain else f"{module.name.rpartition('.')[2]}_{name.lstrip('_')}"
    if twice := [name for name, count in Counter(names.values()).items() if count > 1 or name in foreign]:
        raise PgolfError(f"{twice[0]} means more than one thing in the modules to be packed; rename it in one of them")
    return names


def _resolve(modules: Mapping[str, _Module], owner: str, name: str) -> _Definition:
    """Where a name of a module is defined, through modules that only pass it on."""
    whole = f"{owner}.{name}"
    if name in modules[owner].defined or not name:
        return owner, name
    if name in modules[owner].imported:
        return _resolve(modules, *modules[owner].imported[name])
    if whole in modules:
        return whole, ""
    raise PgolfError(f"{owner} has no {name} that could be packed")


class _Link(ast.NodeTransformer):
    def __init__(
        self,
        module: _Module,
        modules: Mapping[str, _Module],
        names: Mapping[_Definition, str],
        imported: dict[str, str],
    ) -> None:
        self._module, self._modules, self._names, self._imported = module, modules, names, imported
        self._scopes: list[tuple[ast.AST, set[str]]] = []

    def _means(self, name: str) -> _Definition | None:
        """What a name stands for here, when that is something of the modules."""
        for depth, (owner, own) in enumerate(reversed(self._scopes)):
            if name in own and (depth == 0 or not isinstance(owner, ast.ClassDef)):
                return None
        if name in self._module.defined:
            return self._module.name, name
        if name in self._module.imported:
            return _resolve(self._modules, *self._module.imported[name])
        return None

    def _inside(self, node: ast.AST, own: set[str]) -> None:
        self._scopes.append((node, own))
        self.generic_visit(node)
        self._scopes.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        found = self._means(node.name)
        signature = node.args
        node.decorator_list = [self.visit(one) for one in node.decorator_list]
        signature.defaults = [self.visit(one) for one in signature.defaults]
        signature.kw_defaults = [one and self.visit(one) for one in signature.kw_defaults]
        for argument in ast.walk(signature):
            if isinstance(argument, ast.arg) and argument.annotation is not None:
                argument.annotation = self.visit(argument.annotation)
        node.returns = node.returns and self.visit(node.returns)
        self._scopes.append((node, set(_bound_in(node))))
        node.body = [kept for one in node.body if (kept := self.visit(one)) is not None] or [ast.Pass()]
        self._scopes.pop()
        node.name = node.name if found is None else self._names[found]
        return node

    def visit_Lambda(self, node: ast.Lambda) -> ast.Lambda:
        node.args.defaults = [self.visit(one) for one in node.args.defaults]
        self._scopes.append((node, set(_bound_in(node))))
        node.body = self.visit(node.body)
        self._scopes.pop()
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        found = self._means(node.name)
        node.decorator_list = [self.visit(one) for one in node.decorator_list]
        node.bases = [self.visit(one) for one in node.bases]
        self._scopes.append((node, set(_defined(node.body))))
        node.body = [self.visit(one) for one in node.body]
        self._scopes.pop()
        node.name = node.name if found is None else self._names[found]
        return node

    def _comprehension(self, node: ast.AST) -> ast.AST:
        self._inside(node, {one.id for one in ast.walk(node) if isinstance(one, ast.Name) and _stores(one)})
        return node

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension

    def visit_Name(self, node: ast.Name) -> ast.Name:
        found = self._means(node.id)
        if found is None:
            return node
        if not found[1]:
            raise PgolfError(f"{self._module.name} uses the module {found[0]} as a value, which cannot be packed")
        return ast.Name(self._names[found], node.ctx)

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        if isinstance(node.value, ast.Name):
            found = self._means(node.value.id)
            if found is not None and not found[1]:
                return ast.Name(self._names[_resolve(self._modules, found[0], node.attr)], node.ctx)
        self.generic_visit(node)
        return node

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> ast.Import | ast.ImportFrom | None:
        node.names = [alias for alias in node.names if self._stays(node, alias)]
        return node if node.names else None

    visit_ImportFrom = visit_Import

    def _stays(self, node: ast.Import | ast.ImportFrom, alias: ast.alias) -> bool:
        name = bound(alias)
        if name in self._module.imported and isinstance(node, ast.ImportFrom) and node.module in self._modules:
            return False
        if self._scopes:
            return True
        target = self._module.foreign[name]
        if self._imported.get(name, target) != target:
            raise PgolfError(f"{name} is {self._imported[name]} and {target} in modules to be packed; agree on one")
        new = name not in self._imported or self._imported[name].startswith(f"{name}.")  # import a.b, import a.c
        self._imported[name] = target
        return new


def _imports(tree: ast.AST) -> list[ast.Import | ast.ImportFrom]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def _stores(node: ast.Name) -> bool:
    return not isinstance(node.ctx, ast.Load)


def _defined(body: list[ast.stmt]) -> Iterator[str]:
    """Names that statements bind in their own scope, but by imports."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        else:
            yield from (one.id for one in _own(node) if isinstance(one, ast.Name) and _stores(one))


def _bound_in(node: ast.AST) -> Iterator[str]:
    """Names that are local to a function."""
    arguments = node.args  # type: ignore[attr-defined]
    for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg):
        if one is not None:
            yield one.arg
    shared = {name for one in ast.walk(node) if isinstance(one, ast.Global | ast.Nonlocal) for name in one.names}
    for statement in node.body if isinstance(node.body, list) else []:  # type: ignore[attr-defined]
        yield from (name for name in _bound_by(statement) if name not in shared)


def _bound_by(statement: ast.stmt) -> Iterator[str]:
    for one in _own(statement):
        if isinstance(one, ast.Name) and _stores(one):
            yield one.id
        elif isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.ExceptHandler) and one.name:
            yield one.name
        elif isinstance(one, ast.Import):
            yield from map(bound, one.names)


def _own(node: ast.AST) -> Iterator[ast.AST]:
    """A node and what is inside it, but not inside functions, classes and comprehensions of its own."""
    yield node
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda | _Comprehension):
        return
    for child in ast.iter_child_nodes(node):
        yield from _own(child)
