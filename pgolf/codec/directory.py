"""The container's directory: tensors, their side information for the entropy model, and limits on all values.

A JSON object, compressed. Every value is checked before anything is allocated by it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pgolf.codec import tables
from pgolf.codec.coder import MAX_ALPHABET
from pgolf.codec.side_information import MAX_INERTIA, Prediction
from pgolf.errors import PgolfError
from pgolf.quantized.tensors import NEXT_STATE

MAX_HEADER = 1 << 22
MAX_TENSORS = 1 << 16
MAX_SIDE = 1 << 20
CODERS = ("range", "zlib", "brotli", "lzma")
CONTROL_BYTES = {"f16": 2, "bf16": 2, "f32": 4}
MAX_RESOLUTION = 4096
MEMORIES = (4, 15)
SCALES_MEMORY = 15


@dataclass(frozen=True)
class MatrixEntry:
    name: str
    role: str
    rows: int
    columns: int
    resolution: int
    trellis: int
    segment: int
    part: int
    """0: coded by the plain model; 1: by the centered one; 2: all zeros, not coded."""
    base: int
    row_inertia: int
    column_inertia: int
    row_scale: Prediction
    column_scale: Prediction


@dataclass(frozen=True)
class Directory:
    coder: str
    matrices: tuple[MatrixEntry, ...]
    controls: tuple[tuple[str, str, tuple[int, ...]], ...]
    """Name, type (a key of CONTROL_BYTES) and shape of each control tensor."""
    alphabets: tuple[int, int, int]
    """Of the scales, the plain and the centered set."""
    memories: tuple[int, int]
    """Memory (adaptation rate) of the plain and the centered set, see `Scan`; the scales have SCALES_MEMORY."""
    header: Mapping[str, Any]

    @property
    def weights(self) -> int:
        return sum(entry.rows * entry.columns for entry in self.matrices)


_PREDICTION = ("kind", "first", "base")
_NUMBERS = (
    "rows",
    "columns",
    "resolution",
    "trellis",
    "segment",
    "part",
    "base",
    "row_inertia",
    "column_inertia",
)


def write(directory: Directory) -> bytes:
    """The JSON text, tensors column by column: that compresses best."""
    entries = directory.matrices
    columns: dict[str, Any] = {
        "name": [entry.name for entry in entries],
        "role": [entry.role for entry in entries],
    }
    columns |= {key: [getattr(entry, key) for entry in entries] for key in _NUMBERS}
    for side in ("row_scale", "column_scale"):
        columns |= {f"{side}_{key}": [getattr(getattr(entry, side), key) for entry in entries] for key in _PREDICTION}
    controls: dict[str, Any] = {
        "name": [name for name, _, _ in directory.controls],
        "type": [kind for _, kind, _ in directory.controls],
        "shape": [list(shape) for _, _, shape in directory.controls],
    }
    value = {
        "coder": directory.coder,
        "matrices": {key: _fold(values) for key, values in columns.items()},
        "controls": {key: _fold(values) for key, values in controls.items()},
        "alphabets": list(directory.alphabets),
        "memories": list(directory.memories),
        "header": dict(directory.header),
    }
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def read(text: bytes) -> Directory:
    """Raises PgolfError for anything that `write` would not have written."""
    try:
        value = json.loads(text.decode("utf-8"), parse_constant=_refuse)
        matrices, controls = value["matrices"], value["controls"]
        columns = {key: _unfold(values) for key, values in matrices.items()}
        count = len(columns["name"])
        entries = tuple(_entry({key: values[i] for key, values in columns.items()}) for i in range(count))
        parts = [_unfold(controls[key]) for key in ("name", "type", "shape")]
        small = tuple(
            (_text(name), _text(kind), tuple(_whole(side, "shape", 0, MAX_SIDE) for side in shape))
            for name, kind, shape in zip(*parts, strict=True)
        )
        alphabets = tuple(_whole(size, "alphabet", 3, MAX_ALPHABET) for size in value["alphabets"])
        memories = tuple(_whole(memory, "memory", *MEMORIES) for memory in value["memories"])
        directory = Directory(value["coder"], entries, small, alphabets, memories, value["header"])  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        detail = " ".join(str(error).split())[:80]
        raise PgolfError(f"the container's directory is damaged ({detail}); package the model again") from error
    names = [entry.name for entry in entries] + [name for name, _, _ in small]
    if (
        len(set(names)) != len(names)
        or len(names) > MAX_TENSORS
        or len(alphabets) != 3
        or len(memories) != 2
        or directory.coder not in CODERS
        or any(kind not in CONTROL_BYTES for _, kind, _ in small)
        or not isinstance(directory.header, dict)
    ):
        raise PgolfError("the container's directory is inconsistent; package the model again")
    return directory


def check_size(directory: Directory, available: int) -> None:
    """Refuse tensors that cannot be in a file of `available` bytes, before anything is allocated for them."""
    small = 0
    for _, kind, shape in directory.controls:
        count = CONTROL_BYTES[kind]
        for side in shape:
            count *= side
            if count > 1 << 40:
                break
        small += count
    sides = sum(entry.rows + entry.columns for entry in directory.matrices)
    weights = directory.weights
    if max(weights, small) > 256 * available + (1 << 16) or sides > min(4 * available + (1 << 16), 1 << 22):
        raise PgolfError(
            f"a container of {available:,} bytes cannot hold the {weights:,} weights and {small:,} bytes of control "
            "tensors that it declares: it is damaged"
        )


def _fold(values: list[Any]) -> Any:
    """A column of equal numbers as that one number and how often."""
    if len(values) > 1 and isinstance(values[0], int) and len(set(values)) == 1:
        return {"all": values[0], "count": len(values)}
    return values


def _unfold(values: Any) -> list[Any]:
    if isinstance(values, dict):
        return [values["all"]] * _whole(values["count"], "count", 0, MAX_TENSORS)
    if not isinstance(values, list):
        raise ValueError("a column is not a list")
    return values


def _entry(values: dict[str, Any]) -> MatrixEntry:
    limits = {
        "rows": (0, MAX_SIDE),
        "columns": (0, MAX_SIDE),
        "resolution": (1, MAX_RESOLUTION),
        "trellis": (0, 64),
        "segment": (1, MAX_SIDE),
        "part": (0, 2),
        "base": (0, tables.CLASSES - 1),
        "row_inertia": (0, MAX_INERTIA),
        "column_inertia": (0, MAX_INERTIA),
    }
    numbers: dict[str, Any] = {key: _whole(values[key], key, *limits[key]) for key in _NUMBERS}
    if numbers["trellis"] not in {0, *NEXT_STATE}:
        raise ValueError(f"a trellis of {numbers['trellis']} states")
    if numbers["part"] == 1 and numbers["columns"] > 1 << 16:
        raise ValueError("a centered matrix with more than 65,536 columns")
    sides: dict[str, Any] = {
        side: Prediction(
            kind=_whole(values[f"{side}_kind"], "kind", 0, 255),
            first=_whole(values[f"{side}_first"], "first", -(1 << 16), 1 << 16),
            base=_whole(values[f"{side}_base"], "base", 0, tables.CLASSES - 1),
        )
        for side in ("row_scale", "column_scale")
    }
    return MatrixEntry(name=_text(values["name"]), role=_text(values["role"]), **numbers, **sides)


def _whole(value: Any, what: str, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{what} is {str(value)[:20]}; expected {least} to {most}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 1024:
        raise ValueError("a name is not a string")
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} in JSON")
