"""Find a program's modules by name and resolve their import statements, without importing or running any of them."""

import ast
import importlib.util
import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path


class BundleError(Exception):
    """A program that cannot be bundled, or a file that is not a bundle; the message is one line."""


@dataclass(frozen=True)
class SourceModule:
    """A module as it is in its source file."""

    name: str
    source: str
    is_package: bool

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)

    def imports(self, node: ast.AST) -> Iterator[tuple[str, ast.alias]]:
        """(absolute module name, imported name) for each name of an import statement of this module."""
        if isinstance(node, ast.Import):
            yield from ((alias.name, alias) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = self.name if self.is_package else self.name.rpartition(".")[0]
            relative = "." * node.level + (node.module or "")
            module = importlib.util.resolve_name(relative, package) if node.level else relative
            yield from ((module, alias) for alias in node.names)

    @cached_property
    def aliases(self) -> dict[str, str]:
        """Dotted name that each name bound by an import statement, anywhere in the module, refers to."""
        found = {}
        for node in ast.walk(self.tree):
            for module, alias in self.imports(node):
                if isinstance(node, ast.ImportFrom):
                    found[bound(alias)] = f"{module}.{alias.name}"
                else:
                    found[bound(alias)] = module if alias.asname else bound(alias)
        return found


def read_module(name: str, roots: Collection[str]) -> SourceModule | None:
    """The module, or None if it is not in one of the packages `roots` or does not exist.

    Raises BundleError for one without Python source.
    """
    if name.partition(".")[0] not in roots or (spec := _find(name)) is None:
        return None
    if spec.origin is None:  # a namespace package
        return SourceModule(name, "", True)
    if not spec.origin.endswith(".py"):
        raise BundleError(f"module {name} has no Python source ({spec.origin}); bundle from a source installation")
    is_package = spec.submodule_search_locations is not None
    return SourceModule(name, Path(spec.origin).read_text("utf-8"), is_package)


def third_party(trees: Iterable[ast.AST], roots: Collection[str]) -> list[str]:
    """Top-level names imported from outside the standard library and `roots`, sorted.

    Imports inside `try` with an `except ImportError` are optional and not listed.
    """
    found = set()
    for tree in trees:
        for node in _required(tree):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add((node.module or "").partition(".")[0])
    return sorted(found - set(roots) - sys.stdlib_module_names)


def bound(alias: ast.alias) -> str:
    """The name that an import statement binds."""
    return alias.asname or alias.name.partition(".")[0]


def _find(name: str) -> ModuleSpec | None:
    root, *parts = name.split(".")
    try:
        spec = importlib.util.find_spec(root)  # of a top-level name: nothing is imported
    except ValueError:
        return None
    for part in parts:
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(f"{spec.name}.{part}", list(spec.submodule_search_locations))
    return spec


def _required(node: ast.AST) -> Iterator[ast.AST]:
    inside: Iterable[ast.AST] = ast.iter_child_nodes(node)
    if isinstance(node, ast.Try) and any(h.type and "ImportError" in ast.unparse(h.type) for h in node.handlers):
        inside = [*node.handlers, *node.orelse, *node.finalbody]
    yield node
    for child in inside:
        yield from _required(child)
