"""A program for one configuration: settings become constants, and what they switch off is left out.

Replaced is what can be told for sure: `config.SECTION.NAME`, NAME of an argument or field that is annotated with the
section's class, or of a local name for one of these, and facts about the run. Conditions on constants are then decided, code behind a `return` goes, and attributes of the
model's classes that are only ever set to None count as None, so that a part that is off leaves no trace. The
configuration's own checks go as well: it was checked when the run was made.
"""

import ast
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

SECTIONS = {
    "ModelConfig": "model",
    "OptimConfig": "optim",
    "AverageConfig": "average",
    "QuantizeConfig": "quantize",
    "EvaluateConfig": "evaluate",
    "TttConfig": "ttt",
    "PackageConfig": "package",
    "TrainConfig": "train",
}
"""By class."""
_MODEL, _CONFIG = "pgolf.model.", "pgolf.config."

Settings = Mapping[str, Mapping[str, Any]]


Facts = Mapping[str, bool | str | None]
"""Values of `attribute`, `owner.attribute` or a whole expression, wherever they are read."""


def specialize(sources: Mapping[str, str], config: Settings, facts: Facts) -> dict[str, str]:
    """The modules `sources` for the configuration `config` (sections of plain values) and what else is known."""
    named = _named_choices(sources)
    trees = {name: ast.parse(text) for name, text in sources.items()}
    shared = _shared_fields(trees.values())
    made = {}
    for name, tree in trees.items():
        if name.startswith(_CONFIG):
            made[name] = ast.unparse(_Unchecked().visit(tree)) + "\n"
        else:
            changed = _Constants(config, facts, named, shared).visit(tree)
            made[name] = fold(name, ast.unparse(ast.fix_missing_locations(changed)))
    return made


def _shared_fields(trees: Iterable[ast.Module]) -> dict[str, str]:
    """Fields that hold the same section in every class that has them."""
    found: dict[str, set[str]] = {}
    for owner in (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        fields = _section_fields(owner)
        for node in ast.walk(owner):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found.setdefault(node.target.id, set()).add(fields.get(node.target.id, ""))
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.setdefault(node.attr, set()).add(fields.get(node.attr, ""))
    return {name: min(sections) for name, sections in found.items() if len(sections) == 1 and min(sections)}


def _section_fields(owner: ast.ClassDef) -> dict[str, str]:
    """Fields of a class that are annotated with a section, or filled with such an argument of `__init__`."""
    fields = {
        item.target.id: section
        for item in owner.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and (section := _section(item.annotation))
    }
    for item in owner.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            given = {one.arg: section for one in item.args.args if (section := _section(one.annotation))}
            for one in ast.walk(item):
                for target, value in _pairs(one):
                    if isinstance(target, ast.Attribute) and isinstance(value, ast.Name) and value.id in given:
                        fields[target.attr] = given[value.id]
    return fields


def _pairs(node: ast.AST) -> list[tuple[ast.expr, ast.expr]]:
    """What an assignment with one target gives to what; of equally long tuples, item by item."""
    if not isinstance(node, ast.Assign) or len(node.targets) != 1:
        return []
    target, value = node.targets[0], node.value
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
        return list(zip(target.elts, value.elts, strict=True))
    return [(target, value)]


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

    def __init__(
        self, config: Settings, facts: Facts, named: Mapping[str, ast.Tuple], shared: Mapping[str, str]
    ) -> None:
        self._config, self._facts, self._named, self._shared = config, facts, named, shared
        self._local: list[dict[str, str]] = [{}]
        self._fields: list[dict[str, str]] = [{}]

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        found = {one.arg: section for one in arguments if (section := _section(one.annotation))}
        stores = Counter(one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store))
        for one in ast.walk(node):
            for target, value in _pairs(one):
                if isinstance(target, ast.Name) and stores[target.id] == 1 and (section := self._section_of(value)):
                    found[target.id] = section
                    stores[target.id] = 0
        outer = {name: section for name, section in self._local[-1].items() if not stores[name]}
        outer = {name: section for name, section in outer.items() if name not in {one.arg for one in arguments}}
        self._local.append(outer | {name: section for name, section in found.items() if not stores[name]})
        self.generic_visit(node)
        self._local.pop()
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        self._fields.append(_section_fields(node))
        self.generic_visit(node)
        self._fields.pop()
        return node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        whole = ast.unparse(node)
        return ast.Constant(self._facts[whole]) if whole in self._facts else node

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        owner = ast.unparse(node.value).rpartition(".")[2]
        self.generic_visit(node)
        if not isinstance(node.ctx, ast.Load):
            return node
        for known in (node.attr, f"{owner}.{node.attr}"):
            if known in self._facts:
                return ast.Constant(self._facts[known])
        values = self._config.get(self._section_of(node.value), {})
        if node.attr in values:
            return _literal(values[node.attr]) or node
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
        if base.attr in self._shared:
            return self._shared[base.attr]
        parts = ast.unparse(base).split(".")
        return parts[-1] if parts[-2] in ("config", "_config") and parts[-1] in SECTIONS.values() else ""


def _section(annotation: ast.expr | None) -> str:
    return SECTIONS.get(annotation.id, "") if isinstance(annotation, ast.Name) else ""


def _literal(value: Any) -> ast.expr | None:
    """A setting as an expression; lists are tuples. None for what has no literal."""
    if isinstance(value, list):
        items = [_literal(item) for item in value]
        return None if None in items else ast.Tuple([item for item in items if item is not None], ast.Load())
    return ast.Constant(value) if value is None or isinstance(value, bool | int | float | str) else None


def _put_constants(function: ast.FunctionDef) -> None:
    """Local names that are given a constant, once and whatever happens, are put in place."""
    bound = Counter(
        one.arg if isinstance(one, ast.arg) else one.id
        for one in ast.walk(function)
        if isinstance(one, ast.arg) or (isinstance(one, ast.Name) and not isinstance(one.ctx, ast.Load))
    )
    outer = {name for one in ast.walk(function) if isinstance(one, ast.Nonlocal | ast.Global) for name in one.names}
    for statement in list(function.body):
        pairs = _pairs(statement)
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
            idle = all(isinstance(statement, ast.Pass) for statement in [*node.body, *node.orelse])
            return ast.Pass() if idle and isinstance(node.test, ast.Name | ast.Attribute) else node
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
