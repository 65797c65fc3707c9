"""Arguments that are the same wherever a program calls a function become constants inside it.

A module's functions serve many callers; one program may always take the same way through them. Seen are functions and
classes at the top of a module that are only ever called, by their own name or as an attribute of their module: when
each call gives an argument the same constant, or none gives it and its default is one, it is put in place and taken out
of the signature and of the calls. `fold` then decides what depends on it.
"""

import ast
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from pgolf.package.fold import is_pure
from pgolf.package.imports import aliases

_Key = tuple[str, str]


@dataclass
class _Function:
    signature: ast.arguments
    body: list[ast.stmt]
    first: int = 0
    """The first argument that calls give: 1 for `__init__`."""
    calls: list[ast.Call] = field(default_factory=list)
    only_called: bool = True


def settle(sources: Mapping[str, str]) -> dict[str, str]:
    """The modules with such arguments put in place."""
    trees = {name: ast.parse(text) for name, text in sources.items()}
    functions = {
        (name, node.name): found
        for name, tree in trees.items()
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and (found := _function(node)) is not None
    }
    for name, tree in trees.items():
        _find_uses(name, tree, functions)
    for function in functions.values():
        if function.only_called and function.calls:
            _put_in_place(function)
    idle = {id(call) for one in functions.values() if _does_nothing(one) for call in one.calls}
    known = {id(call): value for one in functions.values() if (value := _always(one)) for call in one.calls}
    trees = {name: _Drop(idle, known).visit(tree) for name, tree in trees.items()}
    return {name: ast.unparse(tree) + "\n" for name, tree in trees.items()}


def _function(node: ast.FunctionDef | ast.ClassDef) -> _Function | None:
    """What a definition at the top of a module takes when it is called; None when that cannot be told."""
    if isinstance(node, ast.FunctionDef):
        return None if _reads_its_signature(node) else _Function(node.args, node.body)
    if node.decorator_list:
        return None
    if any(isinstance(part, ast.Name) and part.id == "cls" for part in ast.walk(node)):
        return None  # it makes its objects itself
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return _Function(item.args, item.body, 1)
    return None


def _reads_its_signature(node: ast.FunctionDef) -> bool:
    """Whether a decorator may look at the arguments, as torch's `custom_op` does."""
    plain = ("contextmanager", "cache", "lru_cache", "no_grad", "inference_mode", "njit")
    return any(not ast.unparse(decorator).split("(")[0].endswith(plain) for decorator in node.decorator_list)


def _find_uses(name: str, tree: ast.Module, functions: Mapping[_Key, _Function]) -> None:
    known = aliases(tree)
    called: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            key = _target(node.func, name, known)
            if key in functions:
                functions[key].calls.append(node)
                called.add(id(node.func))
    for node in ast.walk(tree):
        key = _target(node, name, known)
        if key in functions and id(node) not in called:
            functions[key].only_called = False


def _target(node: ast.AST, module: str, known: Mapping[str, str]) -> _Key:
    """(module, name) of what an expression names, if it names something of a module."""
    if isinstance(node, ast.Name):
        whole = known.get(node.id, f"{module}.{node.id}")
    elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in known:
        whole = f"{known[node.value.id]}.{node.attr}"
    else:
        return "", ""
    owner, _, name = whole.rpartition(".")
    return owner, name


def _put_in_place(function: _Function) -> None:
    signature, inside = function.signature, ast.Module(function.body, [])
    if signature.vararg or signature.kwarg or signature.posonlyargs:
        return
    bound = {name.id for name in ast.walk(inside) if isinstance(name, ast.Name) and not isinstance(name.ctx, ast.Load)}
    bound |= {argument.arg for argument in ast.walk(inside) if isinstance(argument, ast.arg)}
    for argument, default in list(_arguments(signature)):
        place = signature.args.index(argument) if argument in signature.args else None
        if argument.arg in bound or (place is not None and place < function.first):
            continue
        given = [_given(call, argument.arg, place, function.first) or default for call in function.calls]
        constant = given[0]
        if constant is None or not all(map(_is_constant, given)) or len({ast.dump(one) for one in given if one}) != 1:
            continue
        _remove(function, argument, place)
        replace = _Replace(argument.arg, constant)
        function.body[:] = [replace.visit(statement) for statement in function.body]


def _arguments(signature: ast.arguments) -> Iterator[tuple[ast.arg, ast.expr | None]]:
    missing = len(signature.args) - len(signature.defaults)
    yield from zip(signature.args, [*[None] * missing, *signature.defaults], strict=True)
    yield from zip(signature.kwonlyargs, signature.kw_defaults, strict=True)


def _given(call: ast.Call, name: str, place: int | None, first: int) -> ast.expr | None:
    """What a call gives for an argument: None when it gives nothing, something not constant when that is not known."""
    for keyword in call.keywords:
        if keyword.arg in (name, None):
            return keyword.value if keyword.arg else ast.Name("_")
    if place is None:
        return None
    place -= first
    spread = [index for index, item in enumerate(call.args) if isinstance(item, ast.Starred)]
    if spread and spread[0] <= place:
        return ast.Name("_")
    return call.args[place] if place < len(call.args) else None


def _is_constant(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) or (isinstance(node, ast.Tuple) and not node.elts)


def _remove(function: _Function, argument: ast.arg, place: int | None) -> None:
    signature = function.signature
    if place is None:
        at = signature.kwonlyargs.index(argument)
        del signature.kwonlyargs[at], signature.kw_defaults[at]
    else:
        if (default := place - (len(signature.args) - len(signature.defaults))) >= 0:
            del signature.defaults[default]
        del signature.args[place]
    for call in function.calls:
        call.keywords = [keyword for keyword in call.keywords if keyword.arg != argument.arg]
        if place is not None and place - function.first < len(call.args):
            del call.args[place - function.first]


def _does_nothing(function: _Function) -> bool:
    return all(isinstance(item, ast.Pass) for item in function.body) and not function.first


def _always(function: _Function) -> ast.Constant | None:
    """The constant that a function gives, whatever it is given."""
    only = function.body[0]
    alone = len(function.body) == 1 and isinstance(only, ast.Return) and isinstance(only.value, ast.Constant)
    return only.value if alone and function.only_called else None  # type: ignore[attr-defined]


class _Drop(ast.NodeTransformer):
    """Calls of functions that do nothing, or give a constant, go where their arguments do nothing either."""

    def __init__(self, calls: Collection[int], known: Mapping[int, ast.Constant]) -> None:
        self._calls, self._known = calls, known

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        plain = all(is_pure(item) for item in (*node.args, *(keyword.value for keyword in node.keywords)))
        return self._known.get(id(node), node) if plain else node

    def visit_Expr(self, node: ast.Expr) -> ast.stmt:
        self.generic_visit(node)
        call = node.value
        if not isinstance(call, ast.Call) or id(call) not in self._calls or call.keywords:
            return node
        return ast.Pass() if all(map(is_pure, call.args)) else node


class _Replace(ast.NodeTransformer):
    def __init__(self, name: str, value: ast.expr) -> None:
        self._name, self._value = name, value

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self._value if node.id == self._name else node
