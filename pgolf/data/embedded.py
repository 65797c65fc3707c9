"""The documentation that comes with every Python, as a corpus: nothing to download, about 2 MB of English.

The language reference (`pydoc_data.topics`) and the docstrings of the standard library. Docstrings are read out of
the source files with `ast`: importing all of the library would run code with side effects (`antigravity` opens a web
browser). The order depends on names only, so it is the same wherever this Python is installed.
"""

import ast
import inspect
import platform
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from pgolf.data.near_duplicates import unlike_others
from pgolf.data.split import in_val
from pgolf.errors import PgolfError

# Not documentation, or not the same everywhere: tests, generated tables, modules that distributions leave out or add.
_SKIPPED = {
    "test",
    "tests",
    "idle_test",
    "idlelib",
    "lib2to3",
    "turtledemo",
    "site-packages",
    "dist-packages",
    "__pycache__",
    "ensurepip",
    "encodings",
    "pydoc_data",
}
_SHORTEST = 200  # characters of a module's docstrings together: below that there is nothing to learn


def embedded_name() -> str:
    """Name of the corpus in manifests; it changes with the version of Python only."""
    return f"documentation of Python {platform.python_version()}"


def embedded_documents() -> Iterator[bytes]:
    """One document per topic of the language reference, then one per class or module of the standard library."""
    seen: set[str] = set()
    for text in [*_topics(), *_docstrings()]:
        if text not in seen:
            seen.add(text)
            yield text.encode("utf-8", "replace")


def _topics() -> Iterator[str]:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:  # some distributions cut it out of their Python
        raise PgolfError(
            "this Python comes without pydoc_data, the default corpus: name documents (pgolf tokenize FILE...)"
        ) from error
    for name in sorted(topics):
        yield topics[name].strip() + "\n"


def _docstrings() -> Iterator[str]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(_sources(root), key=lambda path: path.relative_to(root).as_posix()):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of old escapes in the library's own strings
                tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue  # a file of a distribution's own that this Python does not run either
        name = ".".join(path.relative_to(root).parts).removesuffix(".py").removesuffix(".__init__")
        yield from _of_module(tree, name)


def _sources(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name in _SKIPPED or path.name.startswith(("test_", "config-", "_sysconfigdata")):
            continue
        if path.is_dir():
            yield from _sources(path)
        elif path.suffix == ".py":
            yield path


def _of_module(tree: ast.Module, name: str) -> Iterator[str]:
    """The module with its functions as one document; each class with its methods as one."""
    functions = [name]
    if text := ast.get_docstring(tree):
        functions.append(text)
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield from _if_long(_described(node, ""))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            functions.extend(_described(node, ""))
    yield from _if_long(functions)


def _described(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, indent: str) -> list[str]:
    """The signature and docstring of a class or function and of its members."""
    found = []
    if text := ast.get_docstring(node):
        found.append(indent + _signature(node))
        found.append("\n".join(f"{indent}    {line}" if line else "" for line in inspect.cleandoc(text).split("\n")))
    if isinstance(node, ast.ClassDef):
        for item in node.body:
            if isinstance(item, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found.extend(_described(item, indent + "    "))
    return found


def _signature(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return f"class {node.name}({bases})" if bases else f"class {node.name}"
    return f"{node.name}({ast.unparse(node.args)})"


def _if_long(parts: list[str]) -> Iterator[str]:
    text = "\n\n".join(parts)
    if len(text) >= _SHORTEST and len(parts) > 1:
        yield text + "\n"


def embedded_split(val_fraction: float) -> list[tuple[bytes, bool]]:
    """The embedded documents, each with whether it is val: about `val_fraction` of the bytes.

    Val documents share no passage with any other document, since the corpus repeats itself a lot.
    """
    documents = list(embedded_documents())
    unlike = unlike_others(documents)
    size = sum(len(document) for document, alone in zip(documents, unlike, strict=True) if alone)
    fraction = val_fraction * sum(map(len, documents)) / max(size, 1)
    parts = zip(documents, unlike, strict=True)
    return [(document, alone and in_val(document, fraction)) for document, alone in parts]
