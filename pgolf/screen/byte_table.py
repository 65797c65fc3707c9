"""The byte table of a record's script, read off its source for a few pieces, against the challenge's definition.

Records build three arrays over the vocabulary in one loop: bytes of a piece without its leading space, whether it has
one, whether a space before it would not count (`build_sentencepiece_luts`). The loop's body is interpreted here for one
piece at a time: assignments, conditions and calls from a list on texts of a few characters, and nothing else. A body
that does anything else is left alone. Most void scores of the field come from this table (#1719, #1804, #1271).
"""

import ast
import operator
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pgolf.screen import script
from pgolf.screen.claims import Check, agrees, contradicts
from pgolf.screen.folder import Record


@dataclass(frozen=True)
class _Piece:
    text: str
    kind: str
    """Which of the tokenizer's `is_...` questions is true of it."""
    bytes: int
    """UTF-8 bytes of the text that it stands for, its leading space included."""


_PIECES = (
    _Piece("\u2581the", "", 4),
    _Piece("ing", "", 3),
    _Piece("\u00e9", "", 2),
    _Piece("\u2581", "", 1),
    _Piece("<0x0A>", "byte", 1),
    _Piece("<s>", "control", 0),
)
_NAME = "byte table of the script"
_SPACE_ADDED = re.compile(r"\w\[[^\]]+\]\s*&\s*~\s*[\w.]+\[")
"""The evaluator adds a leading space after everything but a boundary: `has_space[target] & ~boundary[previous]`."""
_FUNCTION = re.compile(r"^def \w+\(.*?(?=^[^\s)#]|\Z)", re.MULTILINE | re.DOTALL)
_CONSTANT = re.compile(r"^(\w+)=(True|False|None)$", re.MULTILINE)  # a minifier's names
_METHODS = ("startswith", "endswith", "encode", "removeprefix", "lstrip", "strip", "replace")
_FUNCTIONS: dict[str, Any] = {"len": len, "int": int, "bool": bool}
_OPERATORS: dict[type, Any] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt,
    ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge, ast.In: lambda a, b: a in b,
}  # fmt: skip


class _UnknownError(Exception):
    """The source does something that is not interpreted."""


class _Next(Exception):
    """`continue`."""


def byte_table(record: Record) -> Iterator[Check]:
    """Every table of the record's scripts that counts another number of bytes than the definition; else one line."""
    right = ""
    for text in record.scripts:
        for layer in script.unpack(text):
            constants = {name: ast.literal_eval(value) for name, value in _CONSTANT.findall(layer.text)}
            added = bool(_SPACE_ADDED.search(layer.text))
            for found in _FUNCTION.finditer(layer.text):
                # Alone: a minified script may have syntax of a newer Python elsewhere.
                tree = script.parsed(found[0]) if "piece(" in found[0].lower() else None
                if tree is None or not isinstance(tree.body[0], ast.FunctionDef):
                    continue
                counted = _counted(tree.body[0], constants, added)
                place = f"{layer.name}:{layer.text.count(chr(10), 0, found.start()) + 1}"
                wrong = [(piece, size) for piece, size in zip(_PIECES, counted, strict=False) if size != piece.bytes]
                if wrong:
                    shown = ", ".join(f"{piece.text!r} {size} for {piece.bytes}" for piece, size in wrong)
                    yield contradicts(_NAME, f"counts bytes: {shown}", place)
                elif counted:
                    right = place
    if right:
        yield agrees(_NAME, f"counts the right bytes of {len(_PIECES)} kinds of pieces", right)


def _counted(function: ast.FunctionDef, constants: dict[str, Any], space_added: bool) -> list[int]:
    """Bytes that an evaluation counts for each of _PIECES; empty for a function that makes no such table."""
    returned = function.body[-1].value if isinstance(function.body[-1], ast.Return) else None
    loop = next((node for node in function.body if isinstance(node, ast.For)), None)
    if not isinstance(returned, ast.Tuple) or len(returned.elts) != 3 or loop is None:
        return []
    arrays = [_array(element) for element in returned.elts]
    if (
        not isinstance(loop.target, ast.Name)
        or None in arrays
        or "idtopiece" not in ast.unparse(loop).replace("_", "").lower()
    ):
        return []
    counted = []
    for piece in _PIECES:
        loop_body = _Body(piece, {**constants, loop.target.id: piece})
        try:
            loop_body.run(loop.body)
        except _Next:
            pass
        except (_UnknownError, TypeError, ValueError, AttributeError, RecursionError):
            return []
        base, space = (loop_body.stored.get(str(name), 0) for name in arrays[:2])
        if not isinstance(base, int) or not isinstance(space, int):
            return []
        counted.append(base + bool(space and space_added))
    return counted


def _array(element: ast.expr) -> str | None:
    """Name of the array in `base`, `torch.tensor(base, ...)` or `torch.from_numpy(base)`."""
    while isinstance(element, ast.Call) and element.args:
        element = element.args[0]
    return element.id if isinstance(element, ast.Name) else None


class _Body:
    """The body of the loop for one piece. `stored`: what it puts into each array at the piece's index."""

    def __init__(self, piece: _Piece, names: dict[str, Any]) -> None:
        self._piece, self._names, self.stored = piece, names, dict[str, Any]()

    def run(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    self._names[name] = self._value(value)
                case ast.Assign(targets=[ast.Subscript(value=ast.Name(id=name))], value=value):
                    self.stored[name] = self._value(value)
                case ast.AugAssign(target=ast.Subscript(value=ast.Name(id=name)), op=ast.Add(), value=value):
                    self.stored[name] = self.stored.get(name, 0) + self._value(value)
                case ast.If(test=test, body=body, orelse=other):
                    self.run(body if self._value(test) else other)
                case ast.Continue():
                    raise _Next
                case ast.Pass():
                    pass
                case _:
                    raise _UnknownError

    def _value(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name) if name in self._names:
                return self._names[name]
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](self._value(left), self._value(right))
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](self._value(left), self._value(right))
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return not self._value(operand)
            case ast.BoolOp(op=op, values=values):
                found = (self._value(value) for value in values)
                return all(found) if isinstance(op, ast.And) else any(found)
            case ast.IfExp(test=test, body=body, orelse=other):
                return self._value(body if self._value(test) else other)
            case ast.Subscript(value=value, slice=ast.Slice(lower=lower, upper=upper, step=None)):
                return self._value(value)[self._bound(lower) : self._bound(upper)]
            case ast.Call(func=ast.Name(id="len" | "int" | "bool" as name), args=[argument]):
                return _FUNCTIONS[name](self._value(argument))
            case ast.Call(func=ast.Attribute(value=value, attr=name), args=arguments):
                return self._called(value, name, arguments)
        raise _UnknownError

    def _bound(self, node: ast.expr | None) -> int | None:
        return None if node is None else int(self._value(node))

    def _called(self, value: ast.expr, name: str, arguments: list[ast.expr]) -> Any:
        """A method of a text, or a question to the tokenizer about the piece."""
        plain = name.replace("_", "").lower()
        if plain == "idtopiece":
            return self._piece.text
        if plain.startswith("is") and plain[2:] in ("byte", "control", "unknown", "unused"):
            return plain[2:] == self._piece.kind
        text = self._value(value)
        if name not in _METHODS or not isinstance(text, str | bytes):
            raise _UnknownError
        # The encoding is UTF-8 by whatever name.
        given = [] if name == "encode" else [self._value(argument) for argument in arguments]
        return getattr(text, name)(*given)
