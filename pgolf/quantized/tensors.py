"""A quantized model, and its dequantization to float32 weights.

Nothing in it is a float that a decoder would have to compute: symbols and scale indices are integers, so two machines
that hold the same QuantizedModel hold the same weights. A weight is `level * T[k] * 2**e` with
row_scale + col_scale = e * resolution + k. The level is an exact integer, `T` a table of correctly rounded float64
powers of two; the product is rounded once to float64 and once to float32. `exp2` of a library is not used, because its
last bit differs between machines.

The trellis is that of dependent quantization (ISO/IEC 15938-17): a segment of a column is a path through a small state
machine that moves by the parity of each symbol. Segments and columns are independent, so decoding takes `segment`
steps, each over all columns and segments at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Context, Decimal
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from pgolf.errors import PgolfError

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
# 16 states and more: h0 and h1 of Ungerboeck's one-dimensional codes (IEEE Trans. Inf. Theory 28, 1982, table I)
for _states, _h0, _h1 in (16, 0o23, 0o04), (32, 0o45, 0o10), (64, 0o103, 0o24):
    _state = np.arange(_states)[:, None]
    KAPPA[_states] = (_state[:, 0] & 1).astype(np.int8)
    NEXT_STATE[_states] = (_state >> 1 ^ (_state & 1) * (_h0 >> 1) ^ np.arange(2) * (_h1 >> 1)).astype(np.int8)
VECTOR = "vector"
"""Role of a tensor of one dimension, held as a matrix of one row."""
MAX_EXPONENT = 120  # largest distance of a scale from 1 in octaves; beyond it float32 overflows or goes subnormal


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """One weight matrix as integers on a grid.

    The weight at (r, c) is `level(r, c) * 2 ** ((row_scale[r] + col_scale[c]) / resolution)`, computed in float64 and
    rounded once to float32. With `trellis` 0 the level is the symbol itself. With 4 states or more the symbols of one
    column, cut in segments of `segment` rows that each begin in state 0, are the levels q of dependent quantization:
    `level = 2 q - sign(q) * kappa(state)`, the state moving by the parity of q (ISO/IEC 15938-17).
    """

    role: str  # "embed", "attn", "mlp", or another group that shares statistics
    symbols: np.ndarray  # (rows, columns) int32
    row_scale: np.ndarray  # (rows,) int16, index on the logarithmic grid; the tensor's own constant is included
    col_scale: np.ndarray  # (columns,) int16
    resolution: int = 8  # grid steps per octave
    trellis: int = 0  # number of states: 0 or a key of NEXT_STATE
    segment: int = 128  # rows per trellis segment

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.symbols.shape
        return rows, columns


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
    """Levels (multiples of the step) that the symbols encode: (rows, columns) int64."""
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


@dataclass(frozen=True, eq=False)
class QuantizedModel:
    """All weights of a model: as integers, or as floats that are stored as they are."""

    matrices: Mapping[str, QuantizedTensor]  # by parameter name: weight matrices, then rounded control tensors
    controls: Mapping[
        str, torch.Tensor
    ]  # the other control tensors (gains, scales, gates): float16, bfloat16 or float32
    header: Mapping[str, Any] = field(
        default_factory=dict
    )  # JSON: the model's configuration and other data for readers

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Dequantized float32 tensors by parameter name, ready for `GPT.load_state_dict`."""
        both = set(self.matrices) & set(self.controls)
        if both:
            raise PgolfError(f"tensor {min(both)} is stored twice")
        weights = {
            name: dequantize(tensor)[0 if tensor.role == VECTOR else ...] for name, tensor in self.matrices.items()
        }
        return weights | {name: tensor.to(torch.float32) for name, tensor in self.controls.items()}
