"""The float tensors of a model: its weights as the quantizers read them, and the control tensors as they are stored."""

from collections.abc import Mapping

import torch

from pgolf.errors import PgolfError

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
