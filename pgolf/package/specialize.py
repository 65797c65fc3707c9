"""A program for one configuration: settings become constants, and what they switch off is left out.

Replaced is what can be told for sure: `config.SECTION.NAME`, and NAME of an argument or field that is annotated with
the section's class. Conditions on constants are then decided, code behind a `return` goes, and attributes of the
model's classes that are only ever set to None count as None, so that a part that is off leaves no trace. The
configuration's own checks go as well: it was checked when the run was made.
"""

import ast
from collections import Counter
from collections.abc import Mapping
from typing import Any

SECTIONS = {
    "ModelConfig": "model",
    "OptimConfig": "optim",
    "AverageConfig": "average",
    "QuantizeConfig": "quantize",
    "EvaluateConfig": "evaluate",
    "TttConfig": "ttt",
    "PackageConfig": "package",
}
"""By class. Not `train`, of which the script's own options change values."""
_MODEL, _CONFIG = "pgolf.model.", "pgolf.config."

Settings = Mapping[str, Mapping[str, Any]]


def specialize(sources: Mapping[str, str], config: Settings, absent: frozenset[str] = frozenset()) -> dict[str, str]:
    """The modules `sources` for the full configuration `config` (sections of plain values).

    absent: attributes that are None in this run whoever has them.
    """
    named = _named_choices(sources)
    return {name: _specialize(name, text, config, absent, named) for name, text in sources.items()}


def _named_choices(sources: Mapping[str, str]) -> dict[str, ast.Tuple]:
    """Tuples of texts that the configuration's modules give a name, such as the methods that need Hessians."""
    found: dict[str, ast.Tuple] = {}
    for name, text in sources.items():
        for node in ast.parse(text).body if name.startswith(_CONFIG) else ():
            if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Tuple):
                continue
            target = node.targets[0]
            if isinstance(target, ast.Name) and all(isinstance(item, ast.Constant) for item in node.value.elts):
                found[target.id] = node.value
    return found


def _specialize(name: str, text: str, config: Settings, absent: frozenset[str], named: Mapping[str, ast.Tuple]) -> str:
    tree: ast.AST = ast.parse(text)
    if name.startswith(_CONFIG):
        return ast.unparse(_Unchecked().visit(tree)) + "\n"
    tree = _Constants(config, absent, named).visit(tree)
    return fold(name, ast.unparse(ast.fix_missing_locations(tree)))


def fold(name: str, text: str) -> str:
    """The module `name` with what depends on constants alone decided, until nothing more is."""
    while True:
        tree = _Fold().visit(ast.parse(text))
        for node in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]:
            _put_constants(node)
        for node in [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]:
            if name.startswith(_MODEL):
                _Nones(node).visit(node)
        before, text = text, ast.unparse(ast.fix_missing_locations(tree)) + "\n"
        if text == before:
            return text


class _Unchecked(ast.NodeTransformer):
    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef | None:
        return None if node.name == "__post_init__" else node


class _Constants(ast.NodeTransformer):
    """Reads of settings become their values."""

    def __init__(self, config: Settings, absent: frozenset[str], named: Mapping[str, ast.Tuple]) -> None:
        self._config, self._absent, self._named = config, absent, named
        self._local: list[dict[str, str]] = [{}]
        self._fields: list[dict[str, str]] = [{}]

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        found = {one.arg: section for one in arguments if (section := _section(one.annotation))}
        stores = {one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}
        for one in ast.walk(node):
            if isinstance(one, ast.Assign) and len(one.targets) == 1 and isinstance(one.targets[0], ast.Name):
                parts = ast.unparse(one.value).split(".")
                if len(parts) > 1 and parts[-2] == "config" and parts[-1] in SECTIONS.values():
                    found[one.targets[0].id] = parts[-1]
                    stores.discard(one.targets[0].id)
        outer = {name: section for name, section in self._local[-1].items() if name not in stores}
        self._local.append(outer | {name: section for name, section in found.items() if name not in stores})
        self.generic_visit(node)
        self._local.pop()
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        fields = {
            item.target.id: section
            for item in node.body
            if isinstance(item, ast.AnnAssign)
            and isinstance(item.target, ast.Name)
            and (section := _section(item.annotation))
        }
        for item in node.body:
            if isinstance(item, ast.FunctionDef) and item.name == "__init__":
                given = {one.arg: section for one in item.args.args if (section := _section(one.annotation))}
                for one in ast.walk(item):
                    if isinstance(one, ast.Assign):
                        fields |= _handed_on(one, given)
        self._fields.append(fields)
        self.generic_visit(node)
        self._fields.pop()
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        self.generic_visit(node)
        if not isinstance(node.ctx, ast.Load):
            return node
        if node.attr in self._absent:
            return ast.Constant(None)
        values = self._config.get(self._section_of(node.value), {})
        if node.attr in values:
            value = values[node.attr]
            if value is None or isinstance(value, bool | int | float | str):
                return ast.Constant(value)
            if isinstance(value, list) and not value:
                return ast.Tuple([], ast.Load())
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        self.generic_visit(node)
        node.comparators = [
            self._named.get(one.id, one) if isinstance(one, ast.Name) else one for one in node.comparators
        ]
        return node

    def _section_of(self, base: ast.expr) -> str:
        if isinstance(base, ast.Name):
            return self._local[-1].get(base.id, "")
        if not isinstance(base, ast.Attribute):
            return ""
        if isinstance(base.value, ast.Name) and base.value.id == "self" and base.attr in self._fields[-1]:
            return self._fields[-1][base.attr]
        parts = ast.unparse(base).split(".")
        return parts[-1] if parts[-2] in ("config", "_config") and parts[-1] in SECTIONS.values() else ""


def _section(annotation: ast.expr | None) -> str:
    return SECTIONS.get(annotation.id, "") if isinstance(annotation, ast.Name) else ""


def _handed_on(node: ast.Assign, given: Mapping[str, str]) -> dict[str, str]:
    """Fields that an assignment in `__init__` fills with an argument of a known section."""
    targets, values = node.targets[0], node.value
    pairs = (
        zip(targets.elts, values.elts, strict=False)
        if isinstance(targets, ast.Tuple) and isinstance(values, ast.Tuple)
        else [(targets, values)]
    )
    return {
        target.attr: given[value.id]
        for target, value in pairs
        if isinstance(target, ast.Attribute) and _is_self(target) and isinstance(value, ast.Name) and value.id in given
    }


def _put_constants(function: ast.FunctionDef) -> None:
    """Local names that are given a constant, once and whatever happens, are put in place."""
    bound = Counter(
        one.arg if isinstance(one, ast.arg) else one.id
        for one in ast.walk(function)
        if isinstance(one, ast.arg) or (isinstance(one, ast.Name) and not isinstance(one.ctx, ast.Load))
    )
    outer = {name for one in ast.walk(function) if isinstance(one, ast.Nonlocal | ast.Global) for name in one.names}
    for statement in list(function.body):
        if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
            continue
        target, value = statement.targets[0], statement.value
        pairs = [(target, value)]
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
            pairs = list(zip(target.elts, value.elts, strict=True))
        put = {
            one.id: constant
            for one, constant in pairs
            if isinstance(one, ast.Name) and _is_brief(constant) and bound[one.id] == 1
        }
        put = {name: constant for name, constant in put.items() if name not in outer}
        if not put:
            continue
        kept = [(one, other) for one, other in pairs if not (isinstance(one, ast.Name) and one.id in put)]
        place = function.body.index(statement)
        function.body[place : place + 1] = [ast.Assign([one], other) for one, other in kept[:1]] if len(kept) < 2 else [
            ast.Assign([ast.Tuple([one for one, _ in kept], ast.Store())], ast.Tuple([b for _, b in kept], ast.Load()))
        ]  # fmt: skip
        for index, one in enumerate(function.body):
            function.body[index] = _Put(put).visit(one)
    function.body = function.body or [ast.Pass()]


def _is_brief(node: ast.expr) -> bool:
    """A constant that takes hardly more than the name for it."""
    return isinstance(node, ast.Constant) and (isinstance(node.value, str | None) or len(repr(node.value)) < 6)


class _Put(ast.NodeTransformer):
    def __init__(self, values: Mapping[str, ast.expr]) -> None:
        self._values = values

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self._values.get(node.id, node) if isinstance(node.ctx, ast.Load) else node


class _Nones(ast.NodeTransformer):
    """Attributes of one class that are None and nothing else."""

    def __init__(self, owner: ast.ClassDef) -> None:
        assigned: dict[str, list[ast.expr | None]] = {}
        for node in ast.walk(owner):
            targets = _targets(node)
            for target in targets:
                for part in ast.walk(target):
                    if isinstance(part, ast.Attribute) and _is_self(part):
                        plain = part is target and isinstance(node, ast.Assign | ast.AnnAssign)
                        assigned.setdefault(part.attr, []).append(getattr(node, "value", None) if plain else None)
        self.names = {
            name
            for name, values in assigned.items()
            if all(isinstance(value, ast.Constant) and value.value is None for value in values)
        }

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        self.generic_visit(node)
        if isinstance(node.ctx, ast.Load) and _is_self(node) and node.attr in self.names:
            return ast.copy_location(ast.Constant(None), node)
        return node


class _Fold(ast.NodeTransformer):
    """Decides what depends on constants alone, and drops what comes after a `return` or `raise`."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        body = getattr(node, "body", None)
        if isinstance(body, list):
            for index, statement in enumerate(body):
                if isinstance(statement, ast.Return | ast.Raise):
                    del body[index + 1 :]
                    break
        return node

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        truth = _truth(node.test)
        if truth is None:
            return node
        return (node.body if truth else node.orelse) or ast.Pass()

    def visit_IfExp(self, node: ast.IfExp) -> ast.expr:
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
            return node
        return ast.Constant(bool(eval(compile(ast.Expression(ast.fix_missing_locations(node)), "", "eval"))))


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
    return [node.target] if isinstance(node, ast.AnnAssign | ast.AugAssign | ast.For) else []


def _is_self(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id == "self"
