"""Side information of a matrix or a scale vector for the entropy model, chosen from integer statistics.

Integers and divisions of integers only, so that the same weights give the same container on every machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pgolf.codec import tables
from pgolf.codec.symbols import Plane
from pgolf.quantized.tensors import QuantizedTensor

ALPHABETS = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128)
_NOISE = 0.571  # relative variance of a half-normal: pi / 2 - 1
MAX_INERTIA = 12


def plane_of(tensor: QuantizedTensor, centered: bool) -> Plane:
    """The model's parameters for one matrix."""
    rows, columns = tensor.shape
    size = np.minimum(np.abs(tensor.symbols.astype(np.int64)), 1 << 16)
    if centered:
        # rows that resemble each other leave less than they hold; live rows come to a tenth more. Both are learned
        steps = np.abs(np.diff(tensor.symbols.astype(np.int64), axis=0))
        return _plane(tensor, max(min(_mean_class(size), _mean_class(steps)) - 4, 0), 1, 4)
    across, down = _inertia(size.sum(axis=1), columns), _inertia(size.sum(axis=0), rows)
    return _plane(tensor, _mean_class(size), across, down)


def _plane(tensor: QuantizedTensor, base: int, row_inertia: int, column_inertia: int) -> Plane:
    rows, columns = tensor.shape
    return Plane(
        rows=rows,
        columns=columns,
        trellis=tensor.trellis,
        segment=tensor.segment,
        base=base,
        row_inertia=row_inertia,
        column_inertia=column_inertia,
        row_scale=tensor.row_scale,
        resolution=tensor.resolution,
    )


def resembles(tensor: QuantizedTensor) -> bool:
    """True if neighboring rows agree in sign more often than by chance, so that centered coding is worth a try."""
    rows, columns = tensor.shape
    if rows < max(32, columns) or not 8 <= columns <= 1 << 16:
        return False
    signs = np.sign(tensor.symbols).astype(np.int8)
    agreement = int((signs[1:] * signs[:-1]).sum(dtype=np.int64))
    return agreement * 50 > rows * columns


def alphabet_for(matrices: Sequence[np.ndarray]) -> int:
    """The smallest alphabet that holds all but one in 32,768 magnitudes."""
    counts = np.zeros(ALPHABETS[-1] + 1, dtype=np.int64)
    for matrix in matrices:
        counts += np.bincount(np.minimum(np.abs(matrix), ALPHABETS[-1]).ravel(), minlength=len(counts))
    beyond = counts.sum() - np.cumsum(counts)  # larger than i
    return next((size for size in ALPHABETS if beyond[size - 2] << 15 <= counts.sum()), ALPHABETS[-1])


def _mean_class(size: np.ndarray) -> int:
    mean = int(size.sum()) * tables.UNIT // max(size.size, 1)
    return int(tables.class_of()[min(max(mean, 1), tables.MAX_MAGNITUDE)])


def _inertia(sums: np.ndarray, count: int) -> int:
    """For factors of which `sums` are observed, each over `count` symbols: noise over the factors' own variance.

    Number of symbols that the starting value of a factor weighs in its best linear estimate, as a power of two.
    """
    total, squares = int(sums.sum()), sum(value * value for value in sums.tolist())
    if not total:
        return MAX_INERTIA
    spread = len(sums) * squares / (total * total) - 1 - _NOISE / count
    inertia = 0
    while inertia < MAX_INERTIA and spread * 2**inertia * 1.414 < _NOISE:
        inertia += 1
    return inertia


@dataclass(frozen=True)
class Prediction:
    """How a scale vector is predicted: 0 from its own first entry, 1 from the previous entry, and 2 + k
    from the k-th vector before it of the same length, shifted by the difference of the first entries."""

    kind: int
    first: int
    base: int


def predict(kind: int, first: int, length: int, earlier: Sequence[np.ndarray]) -> np.ndarray | None:
    """Predicted entries of kinds 0 and 2 + k; None for kind 1, which needs the previous entry."""
    if kind == 1:
        return None
    if kind == 0:
        return np.full(length, first, dtype=np.int64)
    other = same_length(length, earlier)[kind - 2].astype(np.int64)
    return other - other[0] + first


def same_length(length: int, earlier: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Earlier vectors of this length, the last one first."""
    return [vector for vector in reversed(earlier) if len(vector) == length]


def describe_vector(vector: np.ndarray, earlier: Sequence[np.ndarray]) -> tuple[Prediction, np.ndarray]:
    """The prediction with the smallest residual, and that residual: (length,) int32."""
    wide = vector.astype(np.int64)
    if not len(wide):
        return Prediction(0, 0, 0), np.zeros(0, dtype=np.int32)
    ordered = np.sort(wide)
    best: tuple[int, int, int, np.ndarray] | None = None
    for kind in range(2 + min(len(same_length(len(wide), earlier)), 30)):
        first = int(ordered[len(wide) // 2]) if kind == 0 else int(wide[0])
        expected = predict(kind, first, len(wide), earlier)
        left = np.diff(wide, prepend=first) if expected is None else wide - expected
        if kind > 1:
            shift = int(np.sort(left)[len(left) // 2])
            first, left = first + shift, left - shift
        cost = int(np.abs(left).sum())
        if best is None or cost < best[0]:
            best = (cost, kind, first, left)
    assert best is not None
    _, kind, first, left = best
    return Prediction(kind, first, _mean_class(np.abs(left))), left.astype(np.int32)
