"""What only a person reads, taken out of the packed copy: texts of errors, progress, tables, the layout of C sources.

An error keeps its class and the line it comes from, which the script's traceback shows; what was wrong in words is said
by pgolf itself, from which the script was made.
"""

import ast
import re

_SPOKEN = ("stages.script", "pgolf.package.scoring")
"""Modules whose errors are about the files that the script's user names: they keep their texts."""
_ERRORS = ("PgolfError", "CheckFailed", "ValueError")
_C = "pgolf.model."
_NO_SPACE = re.compile(r" ?([-+*/%<>=&|?:;,(){}!^~\[\]]) ?")  # sources have no `a - -b` and the like


def terse(name: str, source: str) -> str:
    """The module `name` with errors that say nothing but where they come from, and C without indentation."""
    tree = _Terse(name).visit(ast.parse(source))
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt) and getattr(node, "body", None) == []:
            node.body = [ast.Pass()]  # type: ignore[attr-defined]
    return ast.unparse(tree) + "\n"


class _Terse(ast.NodeTransformer):
    def __init__(self, name: str) -> None:
        self._spoken, self._c = name in _SPOKEN, name.startswith(_C)
        self._bars: list[str] = []

    def visit_With(self, node: ast.With) -> ast.AST | list[ast.stmt]:
        shown = [item for item in node.items if _is_call_of(item.context_expr, "reporter", "progress")]
        bars = [item.optional_vars.id for item in shown if isinstance(item.optional_vars, ast.Name)]
        self._bars += bars
        self.generic_visit(node)
        del self._bars[len(self._bars) - len(bars) :]
        node.items = [item for item in node.items if item not in shown]
        return node if node.items else node.body

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        self.generic_visit(node)
        told = isinstance(node.value, ast.Constant) and node.value.value is None
        return None if told or _is_call_of(node.value, "reporter", "table") else node

    def visit_Assign(self, node: ast.Assign) -> ast.Assign | None:
        self.generic_visit(node)
        target = ast.unparse(node.targets[0])
        return None if target.startswith(("build.details", "build.metrics")) else node

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        self.generic_visit(node)
        told = isinstance(node.value, ast.Name) and node.value.id in self._bars
        return ast.Constant(None) if told else node

    def visit_Lambda(self, node: ast.Lambda) -> ast.expr:
        self.generic_visit(node)
        return node.body if isinstance(node.body, ast.Constant) and node.body.value is None else node

    def visit_Raise(self, node: ast.Raise) -> ast.Raise:
        self.generic_visit(node)
        call = node.exc
        named = isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.keywords
        if named and not self._spoken and call.func.id in _ERRORS:  # type: ignore[union-attr]
            node.exc = call.func  # type: ignore[union-attr]
        return node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        if isinstance(node.func, ast.Constant):
            return node.func  # a progress bar's `update`
        if isinstance(node.func, ast.Name) and node.func.id == "cast" and len(node.args) == 2:
            return node.args[1]  # a hint to the type checker
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        if self._c and isinstance(node.value, str) and node.value.count("\n") > 2:
            lines = (line.strip() for line in node.value.split("\n"))
            kept = [line for line in lines if line and not (line.startswith("/*") and line.endswith("*/"))]
            kept = [line if line.startswith("#") else _NO_SPACE.sub(r"\1", line) for line in kept]
            return ast.copy_location(ast.Constant("\n" + "\n".join(kept) + "\n"), node)
        return node


def _is_call_of(node: ast.expr, owner: str, method: str) -> bool:
    """Whether an expression calls `owner.method` or `something.owner.method`."""
    return isinstance(node, ast.Call) and f".{ast.unparse(node.func)}".endswith(f".{owner}.{method}")
