"""Minify modules with python-minifier: no comments and docstrings, short names for local variables and private globals.

Every other name is kept, parameters too: shortening those makes a packed program larger by 0.2%, and tracebacks hard
to read. C sources in strings lose their indentation and comments. Tree shaking has removed the annotations that
nothing reads.
"""

import ast
import functools
import re

import python_minifier
from python_minifier.transforms.remove_annotations_options import RemoveAnnotationsOptions

_ANNOTATIONS = RemoveAnnotationsOptions(
    remove_variable_annotations=True,
    remove_return_annotations=False,
    remove_argument_annotations=False,
    remove_class_attribute_annotations=False,
)

_C_SOURCE = re.compile(r"^ *#(include|pragma) ", re.M)


@functools.cache  # a byte target and the package that is then made minify the same modules
def minify(source: str, keep: frozenset[str] = frozenset()) -> str:
    """The module in fewer characters; it behaves the same. keep: private globals that other modules use."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and _C_SOURCE.search(node.value):
            node.value = re.sub(r"\n\s*", "\n", re.sub(r"/\*.*?\*/", "", node.value, flags=re.S))  # C source
    source = ast.unparse(tree)
    parameters = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {name for node in ast.walk(tree) if isinstance(name := getattr(node, "name", None), str)}
    names |= {node.asname for node in ast.walk(tree) if isinstance(node, ast.alias) and node.asname}
    return python_minifier.minify(
        source,
        remove_annotations=_ANNOTATIONS,
        remove_literal_statements=True,
        rename_locals=True,
        preserve_locals=sorted(parameters),
        hoist_literals=False,
        rename_globals=True,
        preserve_globals=sorted(name for name in names if name in keep or not is_private(name)),
    )


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")
