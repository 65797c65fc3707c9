"""Control tensors on grids of their own, coded like the weights: 5 to 6 bits a value in place of 14 (16 compressed).

A tensor's step is the one at which a value costs as much divergence as a weight of the matrices does, which is where a
bit buys the same in both (QUANTIZATION 6.1). The tensor is rounded to nearest as float32 training has left it: all of
them together cost about a hundredth of what the matrices do, so that nothing has to make up for it.
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
TOKENS = 4096  # of each measurement: a step moves by a few percent against four times as many
_TRIAL = 0.2  # step of the measurement, in root mean squares


def choose_steps(source: CalibratedModel, matrices: Matrices) -> dict[str, int]:
    """Scale index of every control tensor that is worth rounding, given the rounded matrices it must keep up with."""
    distance = Divergence(source.model, source.batches(TOKENS, choosing=True))
    wanted = distance.of({name: dequantize(tensor) for name, tensor in matrices.items()})
    wanted /= sum(tensor.symbols.size for tensor in matrices.values())  # nats per token and weight
    found = {}
    for name, control in source.controls.items():
        values = source.weights[name].double().numpy()
        size = float(np.sqrt(np.mean(values**2))) if values.size else 0.0
        if values.size < LEAST or not size or control.ndim > 2:
            continue
        trial = _index(_TRIAL * size, source)
        cost = distance.of({name: dequantize(_rounded(source.weights[name], trial, source)).view(control.shape)})
        step = grid.step_of(np.array(trial), source.config.quantize.resolution)
        found[name] = _index(float(step) * (wanted * values.size / max(cost, 1e-30)) ** 0.5, source)
    return found


def split(
    tensors: Mapping[str, Tensor], steps: Mapping[str, int], source: CalibratedModel
) -> tuple[Matrices, dict[str, Tensor]]:
    """Control tensors by name as what is stored: those of `steps` as matrices, the others as floats."""
    matrices = {name: _rounded(tensors[name], index, source) for name, index in steps.items()}
    return matrices, {name: half_or_float(tensor) for name, tensor in tensors.items() if name not in steps}


def _index(step: float, source: CalibratedModel) -> int:
    return int(grid.index_of(np.array(step), source.config.quantize.resolution))


def _rounded(tensor: Tensor, index: int, source: CalibratedModel) -> QuantizedTensor:
    resolution = source.config.quantize.resolution
    values = tensor.double().numpy().reshape(-1, tensor.shape[-1])
    symbols = np.rint(values / grid.step_of(np.array(index), resolution)).astype(np.int32)
    rows, columns = symbols.shape
    return QuantizedTensor(
        role=VECTOR if tensor.ndim == 1 else "control",
        symbols=symbols,
        row_scale=np.full(rows, index, np.int16),
        col_scale=np.zeros(columns, np.int16),
        resolution=resolution,
        trellis=0,
        segment=rows,
    )
