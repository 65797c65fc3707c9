"""GPTQ with one step per row, as the published records use it, but for float64 and no clipping."""

import numpy as np

from pgolf.quant import error_feedback, grid, rtn
from pgolf.quant.grid import Floats
from pgolf.quantized.tensors import QuantizedTensor


def quantize(weight: Floats, hessian: Floats, role: str, bits: int, sigmas: float, damping: float) -> QuantizedTensor:
    """Integers of `weight` (rows, columns) with error feedback under `hessian` (columns, columns).

    The step of a row puts the integer 2^(bits-1) - 1 at `sigmas` standard deviations; columns go in order of falling
    diagonal, the largest first.
    """
    order = np.argsort(np.diag(hessian), kind="stable")  # feedback runs from the last to the first
    index = grid.index_of(rtn.row_steps(weight, bits, sigmas), rtn.FINE)
    steps = grid.step_of(index, rtn.FINE)
    lower, _ = error_feedback.factor(hessian[np.ix_(order, order)], damping)
    symbols = np.empty(weight.shape, np.int32)

    def round_column(j: int, targets: Floats) -> Floats:
        levels = np.rint(targets / steps)
        symbols[:, order[j]] = levels.astype(np.int32)
        return levels * steps

    error_feedback.quantize_columns(weight[:, order], lower, round_column)
    return QuantizedTensor(
        role=role,
        symbols=symbols,
        row_scale=index,
        col_scale=np.zeros(weight.shape[1], np.int16),
        resolution=rtn.FINE,
    )
