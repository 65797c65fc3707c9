"""Minify modules with python-minifier: no comments, docstrings or assertions; short names for local variables.

Names that other modules, callers or `getattr` may use are kept. Annotations of class attributes are kept, because
dataclasses read them; tree shaking has removed those of functions.
"""

import python_minifier
from python_minifier.transforms.remove_annotations_options import RemoveAnnotationsOptions

_ANNOTATIONS = RemoveAnnotationsOptions(
    remove_variable_annotations=True,
    remove_return_annotations=False,
    remove_argument_annotations=False,
    remove_class_attribute_annotations=False,
)


def minify(source: str) -> str:
    """The module in fewer characters; it behaves the same."""
    return python_minifier.minify(
        source,
        remove_annotations=_ANNOTATIONS,
        remove_literal_statements=True,
        rename_locals=True,
        hoist_literals=False,
        rename_globals=False,
    )
