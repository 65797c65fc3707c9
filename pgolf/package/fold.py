"""Decide what depends on constants alone, and leave out what then has no use: branches, local names, attributes.

Constants go where names stand for them; conditions on them are decided; code behind a `return` goes; attributes of the
model's classes that are only ever set to one constant, such as None, count as it, so that a part that is off leaves no
trace; names and attributes that are set and never read are not set. Reading one is taken to do nothing else.
"""

import ast
from collections import Counter
from collections.abc import Collection, Iterator, Mapping

_MODEL = "pgolf.model."
_Pair = tuple[ast.expr, ast.expr]


class Folder:
    """Folds a program again and again, and looks at what has changed since only."""

    def __init__(self) -> None:
        self._known: tuple[dict[str, str], frozenset[str]] | None = None
        self._done: dict[str, str] = {}

    def fold(self, sources: Mapping[str, str]) -> dict[str, str]:
        """The modules, until nothing more can be decided."""
        texts = dict(sources)
        trees = {name: ast.parse(text) for name, text in texts.items()}
        changed = {name for name, text in texts.items() if self._done.get(name) != text}
        while True:
            now = _constant_attributes(trees), _unread_attributes(trees.values())
            if now != self._known:
                self._known, changed = now, set(trees)
            if not changed:
                self._done = texts
                return dict(texts)
            for name in sorted(changed):
                before, texts[name] = texts[name], _fold(trees[name], name.startswith(_MODEL), *now)
                trees[name] = ast.parse(texts[name])
                if texts[name] == before:
                    changed.discard(name)


def _fold(tree: ast.Module, of_model: bool, settled: Mapping[str, str], unread: Collection[str]) -> str:
    attributes = {name: ast.parse(text, mode="eval").body for name, text in settled.items()}
    _Put({}, attributes, ("model", "self") if of_model else ("model",)).visit(tree)
    tree = _Fold(unread).visit(tree)
    for node in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]:
        _tidy_locals(node)
    return ast.unparse(tree) + "\n"


def pairs(node: ast.AST) -> list[_Pair]:
    """What an assignment with one target gives to what; of equally long tuples, item by item."""
    if not isinstance(node, ast.Assign) or len(node.targets) != 1:
        return []
    target, value = node.targets[0], node.value
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
        return list(zip(target.elts, value.elts, strict=True))
    return [(target, value)]


def _constant_attributes(trees: Mapping[str, ast.Module]) -> dict[str, str]:
    """Attributes that the model's classes set to a constant and nothing sets to anything else, with the constant."""
    values: dict[str, list[ast.expr | None]] = {}
    owned: set[str] = set()
    for name, tree in trees.items():
        for node in ast.walk(tree):
            found: list[tuple[ast.expr, ast.expr | None]] = [*pairs(node)]
            found = found or [(target, None) for target in _targets(node)]
            for target, value in found:
                for part in ast.walk(target):
                    if isinstance(part, ast.Attribute) and not isinstance(part.ctx, ast.Load):
                        values.setdefault(part.attr, []).append(value if part is target else None)
                        owned |= {part.attr} if name.startswith(_MODEL) and _is_self(part) else set()
            if isinstance(node, ast.ClassDef | ast.Module):  # methods, fields, what modules define are something else
                for item in node.body:
                    if isinstance(item, ast.FunctionDef | ast.ClassDef):
                        values.setdefault(item.name, []).append(None)
                    for part in (part for target in _targets(item) for part in ast.walk(target)):
                        if isinstance(part, ast.Name):
                            values.setdefault(part.id, []).append(None)
    return {
        name: ast.unparse(first)
        for name in owned
        if isinstance(first := values[name][0], ast.Constant)
        and all(value is not None and ast.dump(value) == ast.dump(first) for value in values[name])
    }


def _unread_attributes(trees: Collection[ast.Module]) -> frozenset[str]:
    """Attributes that are set on `self` and never read, by name or through a string."""
    stored: set[str] = set()
    read: set[str] = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Attribute):
            (read if isinstance(node.ctx, ast.Load) or not _is_self(node) else stored).add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            read.add(node.value)
    return frozenset(stored - read)


class _Put(ast.NodeTransformer):
    """Constants in the place of names and of attributes."""

    def __init__(
        self,
        values: Mapping[str, ast.expr],
        attributes: Mapping[str, ast.expr] | None = None,
        owners: Collection[str] = (),
    ) -> None:
        self._values, self._attributes, self._owners = values, attributes or {}, owners

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self._values.get(node.id, node) if isinstance(node.ctx, ast.Load) else node

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        self.generic_visit(node)
        owned = ast.unparse(node.value).rpartition(".")[2].lstrip("_") in self._owners
        return self._attributes.get(node.attr, node) if owned and isinstance(node.ctx, ast.Load) else node


class _Fold(ast.NodeTransformer):
    """Decides what depends on constants alone, and drops what comes after a `return` or `raise`."""

    def __init__(self, unread: Collection[str]) -> None:
        self._unread = unread

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        body = getattr(node, "body", None)
        if isinstance(body, list):
            for index, statement in enumerate(body):
                if isinstance(statement, ast.Return | ast.Raise):
                    del body[index + 1 :]
                    break
            if not body and isinstance(node, ast.stmt | ast.ExceptHandler):
                body.append(ast.Pass())
        return node

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        node.test = _tested(node.test)
        self.generic_visit(node)
        truth = _truth(node.test)
        if truth is None:
            idle = all(isinstance(statement, ast.Pass) for statement in [*node.body, *node.orelse])
            return ast.Pass() if idle and is_pure(node.test) else node
        return (node.body if truth else node.orelse) or ast.Pass()

    def visit_IfExp(self, node: ast.IfExp) -> ast.expr:
        node.test = _tested(node.test)
        self.generic_visit(node)
        truth = _truth(node.test)
        return node if truth is None else node.body if truth else node.orelse

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        self.generic_visit(node)
        wanted = isinstance(node.op, ast.And)
        kept: list[ast.expr] = []
        for value in node.values:
            truth = _truth(value)
            if truth is None or value is node.values[-1]:
                kept.append(value)
            elif truth != wanted:
                kept.append(value)
                break
        node.values = kept
        last = kept[-1]
        decided = isinstance(last, ast.Constant) and isinstance(last.value, bool) and last.value is not wanted
        if decided and all(isinstance(value, ast.Compare) and is_pure(value) for value in kept[:-1]):
            return last  # `x == y and False`
        return kept[0] if len(kept) == 1 else node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        self.generic_visit(node)
        truth = _truth(node.operand) if isinstance(node.op, ast.Not) else None
        return node if truth is None else ast.Constant(not truth)

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        self.generic_visit(node)
        parts = [node.left, *node.comparators]
        constant = all(isinstance(part, ast.Constant) or _is_number(part) for part in parts)
        choice = (
            isinstance(node.ops[0], ast.In | ast.NotIn)
            and isinstance(node.left, ast.Constant)
            and isinstance(node.comparators[0], ast.Tuple)
            and all(isinstance(item, ast.Constant) for item in node.comparators[0].elts)
        )
        if not constant and not choice:
            pairs_of = zip(parts, node.ops, parts[1:], strict=False)
            links = [ast.Compare(left, [op], [right]) for left, op, right in pairs_of] if len(node.ops) > 1 else []
            broken = any(isinstance(one := self.visit_Compare(link), ast.Constant) and not one.value for link in links)
            return ast.Constant(False) if broken and is_pure(node) else node
        return ast.Constant(bool(eval(compile(ast.Expression(ast.fix_missing_locations(node)), "", "eval"))))

    def visit_Assign(self, node: ast.Assign) -> ast.stmt:
        self.generic_visit(node)
        given = pairs(node)
        kept = [pair for pair in given if not (self._is_unread(pair[0]) and is_pure(pair[1]))]
        return node if len(kept) == len(given) else _assignment(kept)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.stmt:
        self.generic_visit(node)
        return ast.Pass() if self._is_unread(node.target) and (node.value is None or is_pure(node.value)) else node

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.stmt:
        self.generic_visit(node)
        return ast.Pass() if self._is_unread(node.target) and is_pure(node.value) else node

    def _is_unread(self, target: ast.expr) -> bool:
        return isinstance(target, ast.Attribute) and _is_self(target) and target.attr in self._unread


def _tested(test: ast.expr) -> ast.expr:
    """A condition without what makes no difference to it: `x and True`; `x and False` of a pure x is False."""
    if not isinstance(test, ast.BoolOp) or _truth(test.values[-1]) is None or not is_pure(test):
        return test
    if _truth(test.values[-1]) != isinstance(test.op, ast.And):
        return test.values[-1]
    return ast.BoolOp(test.op, test.values[:-1]) if len(test.values) > 2 else test.values[0]


def _tidy_locals(function: ast.FunctionDef) -> None:
    """Local names that are given a constant, once and whatever happens, are put in place; unread ones are not given."""
    bound = Counter(_bound(function))
    read = {one.id for one in ast.walk(function) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Load)}
    outer = {name for one in ast.walk(function) if isinstance(one, ast.Nonlocal | ast.Global) for name in one.names}

    def goes(target: ast.expr, value: ast.expr) -> bool:
        if not isinstance(target, ast.Name) or target.id in outer:
            return False
        itself = isinstance(value, ast.Name) and value.id == target.id
        return itself or (target.id not in read and is_pure(value))

    put = {
        target.id: value
        for statement in function.body
        for target, value in pairs(statement)
        if isinstance(target, ast.Name) and bound[target.id] == 1 and target.id not in outer and _is_brief(value)
    }
    put_in_place, drop = _Put(put), _DropPairs(goes, put)
    function.body = [drop.visit(put_in_place.visit(statement)) for statement in function.body]


class _DropPairs(ast.NodeTransformer):
    def __init__(self, goes, put: Collection[str]) -> None:  # type: ignore[no-untyped-def]
        self._goes, self._put = goes, put

    def visit_Assign(self, node: ast.Assign) -> ast.stmt:
        given = pairs(node)
        kept = [
            (target, value)
            for target, value in given
            if not (self._goes(target, value) or (isinstance(target, ast.Name) and target.id in self._put))
        ]
        return node if len(kept) == len(given) else _assignment(kept)


def _assignment(kept: list[_Pair]) -> ast.stmt:
    if len(kept) < 2:
        return ast.Assign([kept[0][0]], kept[0][1], lineno=0) if kept else ast.Pass()
    targets, values = [target for target, _ in kept], [value for _, value in kept]
    return ast.Assign([ast.Tuple(targets, ast.Store())], ast.Tuple(values, ast.Load()), lineno=0)


def _bound(function: ast.FunctionDef) -> Iterator[str]:
    """Every name that a function, or one inside it, binds, as often as it does."""
    for node in ast.walk(function):
        if isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.FunctionDef | ast.ClassDef | ast.ExceptHandler) and node.name:
            yield node.name
        elif isinstance(node, ast.alias):
            yield node.asname or node.name


def _is_brief(node: ast.expr) -> bool:
    """A constant that takes hardly more than the name for it."""
    return isinstance(node, ast.Constant) and (isinstance(node.value, str | None) or len(repr(node.value)) < 6)


def is_pure(node: ast.expr) -> bool:
    """Whether computing it does nothing else."""
    harmless = (
        ast.Name | ast.Attribute | ast.Constant | ast.Tuple | ast.List | ast.Dict | ast.Compare | ast.BoolOp
        | ast.BinOp | ast.UnaryOp | ast.Subscript | ast.Slice | ast.IfExp
        | ast.expr_context | ast.operator | ast.cmpop | ast.boolop | ast.unaryop
    )  # fmt: skip
    return all(isinstance(part, harmless) or _is_measure(part) for part in ast.walk(node))


def _is_measure(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("len", "max", "min")


def _truth(node: ast.expr) -> bool | None:
    if isinstance(node, ast.Constant):
        return bool(node.value)
    if isinstance(node, ast.Tuple) and not node.elts:
        return False
    return True if _is_number(node) else None


def _is_number(node: ast.expr) -> bool:
    """A negative number, which is an operation on a constant."""
    return isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant)


def _targets(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.Assign):
        return node.targets
    return [node.target] if isinstance(node, ast.AnnAssign | ast.AugAssign | ast.For | ast.comprehension) else []


def _is_self(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id == "self"
