"""Round-to-nearest with one step per row: no data, no feedback. The seed's method, kept for comparison."""

import numpy as np

from pgolf.quant import grid
from pgolf.quant.grid import Floats
from pgolf.quantized.tensors import QuantizedTensor

FINE = 256  # grid steps per octave where steps come from row maxima: 0.14% at most, a half-precision scale has 0.05%


def row_steps(weight: Floats, bits: int, sigmas: float | None) -> Floats:
    """Step of each row of `weight` (rows, columns): the largest integer is at `sigmas` standard deviations, or at
    the row's maximum for None. A row of zeros gets a step of 1."""
    largest = 2 ** (bits - 1) - 1
    reach = np.abs(weight).max(axis=1) if sigmas is None else sigmas * weight.std(axis=1)
    return np.where(reach > 0, reach / largest, 1.0)


def quantize(weight: Floats, role: str, bits: int, sigmas: float | None) -> QuantizedTensor:
    """Nearest integers of `bits` bits, clipped to the symmetric range, for `weight` (rows, columns)."""
    largest = 2 ** (bits - 1) - 1
    index = grid.index_of(row_steps(weight, bits, sigmas), FINE)
    levels = np.rint(weight / grid.step_of(index, FINE)[:, None])
    return QuantizedTensor(
        role=role,
        symbols=np.clip(levels, -largest, largest).astype(np.int32),
        row_scale=index,
        col_scale=np.zeros(weight.shape[1], np.int16),
        resolution=FINE,
    )
