"""Make a module small and leave it readable: names and line structure stay, so that a traceback still says something.

python-minifier takes away comments, docstrings and what else has no effect (annotations of dataclass fields stay, since
configurations are read by them); the result is laid out again one statement to a line with one space of indentation,
which costs about 2.5% after compression. Shortening local names would save another 5%, and no one could read it.
"""

import ast
import functools
import re


@functools.cache
def minify(source: str) -> str:
    """The module without what only a reader of the repository needs; it behaves the same."""
    import python_minifier  # used while packaging only
    from python_minifier.transforms.remove_annotations_options import RemoveAnnotationsOptions

    small = python_minifier.minify(
        source,
        remove_annotations=RemoveAnnotationsOptions(
            remove_variable_annotations=True,
            remove_return_annotations=False,  # `shake` has removed those that nobody reads
            remove_argument_annotations=False,
            remove_class_attribute_annotations=False,
        ),
        remove_literal_statements=True,
        rename_locals=False,
        hoist_literals=False,
        rename_globals=False,
    )
    return layout(small, 1)


def layout(source: str, spaces: int) -> str:
    """One statement to a line, no blank lines, `spaces` of indentation. Raises ValueError for text it cannot keep."""
    text = ast.unparse(ast.parse(source))
    lines = [line for line in text.split("\n") if line]
    narrow = "\n".join(re.sub(r"^ +", lambda found: " " * (len(found[0]) // 4 * spaces), line) for line in lines) + "\n"
    if ast.dump(ast.parse(narrow)) != ast.dump(ast.parse(source)):
        raise ValueError("a string over several lines does not survive a change of indentation")
    return narrow
