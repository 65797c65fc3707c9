"""Make a module small without changing its names: what is read again is laid out again.

python-minifier takes away comments, docstrings and what else has no effect, and joins statements to lines (annotations
of dataclass fields stay, since configurations are read by them). The script lays a module out again as it is loaded,
so that tracebacks show one statement to a line. Shortening local names would save 6% more.
"""

import functools


@functools.cache
def minify(source: str, rename: bool = False) -> str:
    """The module without what only a reader of the repository needs; it behaves the same.

    rename: local names become short ones, too.
    """
    import python_minifier  # used while packaging only
    from python_minifier.transforms.remove_annotations_options import RemoveAnnotationsOptions

    return python_minifier.minify(
        source,
        remove_annotations=RemoveAnnotationsOptions(
            remove_variable_annotations=True,
            remove_return_annotations=False,  # `shake` has removed those that nobody reads
            remove_argument_annotations=False,
            remove_class_attribute_annotations=False,
        ),
        remove_literal_statements=True,
        rename_locals=rename,
        hoist_literals=False,
        rename_globals=False,
    )
