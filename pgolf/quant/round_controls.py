"""Control tensors on grids of their own, coded like the weights: 5 to 6 bits a value in place of 14 (16 compressed).

A tensor's step is the one at which a value costs as much divergence as a weight of the matrices does, which is where a
bit buys the same in both (QUANTIZATION 6.1). Each is rounded to nearest when all else is done: together they cost about
a hundredth of what the matrices do, so that nothing has to make up for it.
"""

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from pgolf.quant import grid
from pgolf.quant.allocate import Matrices
from pgolf.quant.calibrated_model import CalibratedModel
from pgolf.quant.controls import half_or_float
from pgolf.quant.divergence import Divergence
from pgolf.quantized.tensors import VECTOR, QuantizedTensor, dequantize

LEAST = 16  # values: the side information of a matrix takes about 15 bytes
TOKENS = 2048  # of each measurement; four times as many move a step by a few percent


def choose_steps(source: CalibratedModel, matrices: Matrices) -> dict[str, float]:
    """Step of every control tensor that is worth rounding, given the rounded matrices that it must keep up with."""
    distance = Divergence(source.model, source.batches(TOKENS, choosing=True))

    def cost(changed: Matrices) -> float:
        """Nats per token and value."""
        parts = {name: dequantize(tensor).view_as(source.weights[name]) for name, tensor in changed.items()}
        return distance.of(parts) / sum(map(Tensor.numel, parts.values()))

    wanted = cost(matrices)
    found = {}
    for name, control in source.controls.items():
        if control.numel() >= LEAST:
            trial = float(source.weights[name].square().mean()) ** 0.5 / 6
            found[name] = trial * (wanted / max(cost({name: _rounded(source.weights[name], trial)}), 1e-30)) ** 0.5
    return found


def split(tensors: Mapping[str, Tensor], steps: Mapping[str, float]) -> tuple[Matrices, dict[str, Tensor]]:
    """Control tensors by name as what is stored: those of `steps` as matrices, the others as floats."""
    matrices = {name: _rounded(tensors[name], step) for name, step in steps.items()}
    return matrices, {name: half_or_float(tensor) for name, tensor in tensors.items() if name not in steps}


def _rounded(tensor: Tensor, step: float) -> QuantizedTensor:
    """A tensor of one or two dimensions at the nearest step of the grid."""
    values = tensor.double().numpy().reshape(-1, tensor.shape[-1])
    rows, columns = values.shape
    index = np.full(rows, grid.index_of(np.array(step), 4))
    symbols = np.rint(values / grid.step_of(index, 4)[:, None]).astype(np.int32)
    role = VECTOR if tensor.ndim < 2 else "control"
    return QuantizedTensor(role, symbols, index, np.zeros(columns, np.int16), 4)
