"""What only a person reads, taken out of the packed copy: the texts of errors, and the layout of C sources.

An error keeps its class and the line it comes from, which the script's traceback shows; what was wrong in words is said
by pgolf itself, from which the script was made.
"""

import ast

_SPOKEN = ("stages.script", "pgolf.package.scoring")
"""Modules whose errors are about the files that the script's user names: they keep their texts."""
_ERRORS = ("PgolfError", "CheckFailed", "ValueError")
_C = "pgolf.model."


def terse(name: str, source: str) -> str:
    """The module `name` with errors that say nothing but where they come from, and C without indentation."""
    return ast.unparse(ast.fix_missing_locations(_Terse(name).visit(ast.parse(source)))) + "\n"


class _Terse(ast.NodeTransformer):
    def __init__(self, name: str) -> None:
        self._spoken, self._c = name in _SPOKEN, name.startswith(_C)

    def visit_Raise(self, node: ast.Raise) -> ast.Raise:
        self.generic_visit(node)
        call = node.exc
        named = isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.keywords
        if named and not self._spoken and call.func.id in _ERRORS:  # type: ignore[union-attr]
            node.exc = call.func  # type: ignore[union-attr]
        return node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id == "cast" and len(node.args) == 2:
            return node.args[1]  # a hint to the type checker
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        if self._c and isinstance(node.value, str) and node.value.count("\n") > 2:
            lines = (line.strip() for line in node.value.split("\n"))
            kept = [line for line in lines if line and not (line.startswith("/*") and line.endswith("*/"))]
            return ast.copy_location(ast.Constant("\n" + "\n".join(kept) + "\n"), node)
        return node
