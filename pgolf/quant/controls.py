"""The float tensors of a model: its weights as the quantizers read them, and the control tensors as they are stored.

Control tensors of some size may be rounded onto grids of their own and coded like the weights: 5 to 6 bits a value in
place of 14 (16 compressed). A tensor's step is the one at which a value costs as much divergence as a weight of the
matrices does, which is where a bit buys the same in both (QUANTIZATION 6.1). Each is rounded to nearest when all else
is done: together they cost about a hundredth of what the matrices do, so that nothing has to make up for it.
"""

from collections.abc import Mapping

import numpy as np
import torch

from pgolf.errors import PgolfError
from pgolf.quant import grid
from pgolf.quant.divergence import Divergence
from pgolf.quantized.tensors import VECTOR, QuantizedTensor, dequantize

LEAST = 16  # values of a tensor that is rounded: the side information of a matrix takes about 15 bytes
HALF_LIMIT = 2.0**-10  # control tensors go to float16 where that moves no value by more than this share of the largest


def float_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A model's state in float32 on the CPU, by parameter name. Raises PgolfError naming a tensor with NaN or infinity.

    Tensors that are float32 on the CPU already share their memory with the model's.
    """
    weights = {name: tensor.detach().float().cpu() for name, tensor in model.state_dict().items()}
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise PgolfError(f"{name} holds NaN or infinity, so this checkpoint cannot be quantized; retrain it")
    return weights


def control_tensors(weights: Mapping[str, torch.Tensor], roles: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Every tensor that is not a matrix, in float16 where half precision keeps every value, else in float32."""
    return {name: half_or_float(tensor) for name, tensor in weights.items() if name not in roles}


def half_or_float(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` in float16, or in float32 where float16 would overflow or flush small values to zero."""
    half = tensor.to(torch.float16)
    error = (half.double() - tensor.double()).abs()
    fits = bool(torch.isfinite(half).all()) and bool((error <= HALF_LIMIT * tensor.double().abs() + 1e-7).all())
    return half if fits else tensor.to(torch.float32)


def choose_steps(
    distance: Divergence, weights: Mapping[str, torch.Tensor], matrices: Mapping[str, QuantizedTensor]
) -> dict[str, float]:
    """Step of every control tensor that is worth rounding, given the rounded matrices that it must keep up with.

    weights: all float tensors of the model, those that are not in `matrices` being the control tensors.
    """

    def cost(changed: Mapping[str, QuantizedTensor]) -> float:
        """Nats per token and value."""
        parts = {name: dequantize(tensor).view_as(weights[name]) for name, tensor in changed.items()}
        return distance.of(parts) / sum(map(torch.numel, parts.values()))

    wanted = cost(matrices)
    found = {}
    for name, tensor in weights.items():
        if name not in matrices and tensor.numel() >= LEAST:
            trial = float(tensor.square().mean()) ** 0.5 / 6
            found[name] = trial * (wanted / max(cost({name: _rounded(tensor, trial)}), 1e-30)) ** 0.5
    return found


def split(
    tensors: Mapping[str, torch.Tensor], steps: Mapping[str, float]
) -> tuple[dict[str, QuantizedTensor], dict[str, torch.Tensor]]:
    """Control tensors by name as what is stored: those of `steps` as matrices, the others as floats."""
    matrices = {name: _rounded(tensors[name], step) for name, step in steps.items()}
    return matrices, {name: half_or_float(tensor) for name, tensor in tensors.items() if name not in steps}


def _rounded(tensor: torch.Tensor, step: float) -> QuantizedTensor:
    """A tensor of one or two dimensions at the nearest step of the grid."""
    values = tensor.double().numpy().reshape(-1, tensor.shape[-1])
    rows, columns = values.shape
    index = np.full(rows, grid.index_of(np.array(step), 4))
    symbols = np.rint(values / grid.step_of(index, 4)[:, None]).astype(np.int32)
    role = VECTOR if tensor.ndim < 2 else "control"
    return QuantizedTensor(role, symbols, index, np.zeros(columns, np.int16), 4)
