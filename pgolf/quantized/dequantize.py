"""Integers on a grid to float32 weights: part of the format, and the same on every machine.

A weight is `level * T[k] * 2**e` with row_scale + col_scale = e * resolution + k: the level is an exact integer, `T` a
table of correctly rounded float64 powers of two, the product is rounded once to float64 and once to float32. No
library's `exp2` is involved, since those differ in the last bit from machine to machine.

The trellis is that of dependent quantization (ISO/IEC 15938-17): a segment of a column is a path through a small state
machine, moved by the parity of its symbols. Segments and columns are independent, so the walk takes `segment` steps,
each over all columns and segments at once.
"""

from decimal import Context, Decimal
from functools import lru_cache

import numpy as np
import torch

from pgolf.errors import PgolfError
from pgolf.quantized.tensors import QuantizedTensor

# next state by [state][parity of the symbol]: 4 states as in VVC (H.266), 8 as in NNC (ISO/IEC 15938-17)
NEXT_STATE = {
    4: np.array([[0, 2], [2, 0], [1, 3], [3, 1]], dtype=np.int8),
    8: np.array([[0, 2], [7, 5], [1, 3], [6, 4], [2, 0], [5, 7], [3, 1], [4, 6]], dtype=np.int8),
}
# which quantizer a state uses: 0 has the even levels, 1 the odd ones and zero
KAPPA = {
    4: np.array([0, 0, 1, 1], dtype=np.int8),
    8: np.array([0, 1, 0, 1, 0, 1, 0, 1], dtype=np.int8),
}
MAX_EXPONENT = 120  # octaves a scale may lie from 1; beyond it float32 overflows or goes subnormal


def kappas(symbols: np.ndarray, states: int, segment: int) -> np.ndarray:
    """The quantizer (0 or 1) that each symbol was drawn from, found by walking the trellis.

    symbols: (rows, columns) integers. Returns (rows, columns) int8; all zero when `states` is 0.
    """
    rows, columns = symbols.shape
    if states == 0 or not symbols.size:
        return np.zeros(symbols.shape, dtype=np.int8)
    segment = min(segment, rows)
    segments = -(-rows // segment)
    parity = np.zeros((segments * segment, columns), dtype=np.int8)
    parity[:rows] = symbols & 1
    parity = parity.reshape(segments, segment, columns)
    result = np.empty_like(parity)
    state = np.zeros((segments, columns), dtype=np.int8)
    following, kappa = NEXT_STATE[states].ravel(), KAPPA[states]
    for step in range(segment):
        result[:, step] = kappa[state]
        state = following[2 * state + parity[:, step]]
    return result.reshape(-1, columns)[:rows]


def levels(tensor: QuantizedTensor) -> np.ndarray:
    """Integer multiples of the step that the symbols stand for: (rows, columns) int64."""
    symbols = tensor.symbols.astype(np.int64)
    if tensor.trellis == 0:
        return symbols
    return 2 * symbols - np.sign(symbols) * kappas(tensor.symbols, tensor.trellis, tensor.segment)


@lru_cache
def octave_table(resolution: int) -> np.ndarray:
    """2**(k / resolution) for k = 0 .. resolution - 1, each correctly rounded to float64."""
    exact = Context(prec=40)
    return np.array([float(exact.power(Decimal(2), Decimal(k) / Decimal(resolution))) for k in range(resolution)])


def scales(tensor: QuantizedTensor) -> tuple[np.ndarray, np.ndarray]:
    """The step of every weight as (mantissa float64 in [1, 2), exponent int32), both (rows, columns).

    Raises PgolfError for a step outside 2**±MAX_EXPONENT, which only a damaged or hostile file has.
    """
    row, column = tensor.row_scale.astype(np.int32), tensor.col_scale.astype(np.int32)
    if tensor.symbols.size:
        bound = MAX_EXPONENT * tensor.resolution
        if row.min() + column.min() < -bound or row.max() + column.max() > bound:
            raise PgolfError(f"a {tensor.role} tensor has a step outside 2^±{MAX_EXPONENT}: its scales are damaged")
    index = row[:, None] + column[None, :]
    exponent, fraction = np.divmod(index, tensor.resolution)
    return octave_table(tensor.resolution)[fraction], exponent


def dequantize(tensor: QuantizedTensor) -> torch.Tensor:
    """Float32 weights (rows, columns) of a quantized tensor, bit for bit the same everywhere.

    Raises PgolfError when a weight does not fit float32.
    """
    mantissa, exponent = scales(tensor)
    with np.errstate(over="ignore"):
        weights = np.ldexp(mantissa * levels(tensor), exponent).astype(np.float32)
    if not np.isfinite(weights).all():
        raise PgolfError(f"a {tensor.role} tensor has a weight beyond float32: its symbols or scales are damaged")
    return torch.from_numpy(weights)
