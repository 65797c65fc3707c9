"""Which modules a program needs: found by following import statements from its entry points, without running any.

Imports inside functions count, since they run some day; those under `if TYPE_CHECKING:` do not.
"""

import ast
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from pgolf.errors import PgolfError


def follow(entries: Iterable[str], packages: Iterable[str]) -> dict[str, str]:
    """Source text of every module of `packages` that the modules `entries` reach, by dotted name, sorted.

    A module's parent packages come with it. Raises PgolfError for a module without a source file.
    """
    inside = tuple(packages)
    found: dict[str, str] = {}
    waiting = list(entries)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found[name] = _source(name)
        parts = name.split(".")
        waiting += [".".join(parts[:count]) for count in range(1, len(parts))]
        for imported, members in imports(found[name], name):
            if imported.split(".")[0] not in inside:
                continue
            waiting.append(imported)
            waiting += [full for full in (f"{imported}.{member}" for member in members) if _is_module(full)]
    return dict(sorted(found.items()))


def third_party(sources: Mapping[str, str]) -> list[str]:
    """Top-level names that the modules import from neither the standard library nor each other, sorted.

    What is imported under `try` with an `except ImportError` is optional and left out.
    """
    own = {name.split(".")[0] for name in sources}
    used = {imported.split(".")[0] for name, text in sources.items() for imported, _ in imports(text, name, False)}
    return sorted(used - own - sys.stdlib_module_names)


def imports(source: str, name: str, optional: bool = True) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(module, names imported from it) for each import statement of the module `name`, relative ones resolved."""
    package = name if _is_package(name) else name.rpartition(".")[0]
    for node in _walk(ast.parse(source), optional):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, ()
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                module = importlib.util.resolve_name("." * node.level + module, package)
            yield module, tuple(alias.name for alias in node.names)


def aliases(tree: ast.AST) -> dict[str, str]:
    """What the names bound by import statements stand for, dotted, wherever in a module they are."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {bound(alias): alias.name if alias.asname else bound(alias) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {bound(alias): f"{node.module}.{alias.name}" for alias in node.names}
    return found


def bound(alias: ast.alias) -> str:
    """The name that an import binds."""
    return alias.asname or alias.name.partition(".")[0]


def _walk(node: ast.AST, optional: bool) -> Iterator[ast.AST]:
    inside: Iterable[ast.AST] = ast.iter_child_nodes(node)
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        inside = node.orelse
    elif isinstance(node, ast.Try) and not optional and any(map(_catches_import_error, node.handlers)):
        inside = [*node.handlers, *node.orelse, *node.finalbody]
    yield node
    for child in inside:
        yield from _walk(child, optional)


def _catches_import_error(handler: ast.ExceptHandler) -> bool:
    return handler.type is not None and "ImportError" in ast.unparse(handler.type)


def _find(name: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


def _is_module(name: str) -> bool:
    return _find(name) is not None


def _is_package(name: str) -> bool:
    path = _find(name)
    return path is not None and path.name == "__init__.py"


def _source(name: str) -> str:
    path = _find(name)
    if path is None or path.suffix != ".py":
        raise PgolfError(f"the module {name} has no source file here; package from an installation with its sources")
    return path.read_text("utf-8")
