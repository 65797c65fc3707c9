"""A program for one configuration: settings become constants, and what they switch off is left out.

Replaced is what can be told for sure: `config.SECTION.NAME`, NAME of an argument or field that is annotated with the
section's class, or of a local name for one of these, and facts about the run. `reduce` then decides what depends on
them. The configuration's own checks go as well: it was checked when the run was made.
"""

import ast
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from pgolf.package.fold import pairs

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
_CONFIG = "pgolf.config."
_HOLDERS = {"config", "settings", *SECTIONS.values()}
"""Names that hold the configuration or a section."""

Settings = Mapping[str, Mapping[str, Any]]


Facts = Mapping[str, Any]
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
            made[name] = ast.unparse(changed) + "\n"
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
        if isinstance(item, ast.AnnAssign)
        and isinstance(item.target, ast.Name)
        and (section := _section(item.annotation))
    }
    for item in owner.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            given = {one.arg: section for one in item.args.args if (section := _section(one.annotation))}
            for one in ast.walk(item):
                for target, value in pairs(one):
                    if isinstance(target, ast.Attribute) and isinstance(value, ast.Name) and value.id in given:
                        fields[target.attr] = given[value.id]
    return fields


def bake(sources: Mapping[str, str], config: Mapping[str, Any]) -> dict[str, str]:
    """The modules with `config`, section by section, as what the sections' fields are without being told.

    Fields that nothing reads any more are gone, sections without any are None. `from_dict` is not called any more: the
    program's configuration is `Config()`.
    """
    trees = {name: ast.parse(text) for name, text in sources.items()}
    mentioned = {
        node.attr
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and not name.startswith(_CONFIG)
    }
    for name, tree in trees.items():
        for owner in ast.walk(tree) if name.startswith(_CONFIG) else ():
            if isinstance(owner, ast.ClassDef):
                owner.body = [
                    item for item in owner.body if not isinstance(item, ast.FunctionDef) or item.name in mentioned
                ]
    asked = {
        node.attr
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and (name.startswith(_CONFIG) or ast.unparse(node.value).rpartition(".")[2].lstrip("_") in _HOLDERS)
    }
    kept: set[str] = set()
    owners = {
        node.name: node for tree in trees.values() for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and (node.name in SECTIONS or node.name == "Config")
    }  # fmt: skip
    for name, owner in sorted(owners.items(), key=lambda item: item[0] == "Config"):
        values = config if name == "Config" else config[SECTIONS[name]]
        body: list[ast.stmt] = []
        for item in owner.body:
            if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
                body.append(item)
                continue
            section = _section(item.annotation)
            if item.target.id in SECTIONS.values() and item.target.id not in kept:
                item.annotation, item.value = ast.Name("object"), ast.Constant(None)
            elif not section:
                item.value = _literal(values.get(item.target.id, ...)) or item.value
            if item.target.id in asked:
                body.append(item)
        owner.body = body or [ast.Pass()]
        if body:
            kept.add(SECTIONS.get(name, ""))
    for tree in trees.values():
        _Configured().visit(tree)
    return {name: ast.unparse(tree) + "\n" for name, tree in trees.items()}


class _Configured(ast.NodeTransformer):
    def visit_Call(self, node: ast.Call) -> ast.Call:
        self.generic_visit(node)
        return ast.Call(ast.Name("Config"), [], []) if ast.unparse(node.func) == "from_dict" else node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom:
        for alias in node.names:
            if alias.name == "from_dict":
                node.module, alias.name = f"{_CONFIG}sections", "Config"
        node.names = list({alias.name: alias for alias in node.names}.values())
        return node


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
        stores = Counter(
            one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)
        )
        for one in ast.walk(node):
            for target, value in pairs(one):
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
        return _expression(self._facts[whole]) if whole in self._facts else node

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        self.generic_visit(node)
        whole = ast.unparse(node)
        return _expression(self._facts[whole]) if whole in self._facts else node

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        owner = ast.unparse(node.value).rpartition(".")[2]
        self.generic_visit(node)
        if not isinstance(node.ctx, ast.Load):
            return node
        for known in (node.attr, f"{owner}.{node.attr}"):
            if known in self._facts:
                return _expression(self._facts[known])
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
        if parts[-2:] == ["model", "config"]:
            return "model"
        return parts[-1] if parts[-2] in ("config", "_config") and parts[-1] in SECTIONS.values() else ""


def _section(annotation: ast.expr | None) -> str:
    return SECTIONS.get(annotation.id, "") if isinstance(annotation, ast.Name) else ""


def _expression(value: Any) -> ast.expr:
    return ast.parse(repr(value), mode="eval").body


def _literal(value: Any) -> ast.expr | None:
    """A setting as an expression; lists are tuples. None for what has no literal."""
    if isinstance(value, list):
        items = [_literal(item) for item in value]
        return None if None in items else ast.Tuple([item for item in items if item is not None], ast.Load())
    return ast.Constant(value) if value is None or isinstance(value, bool | int | float | str) else None
