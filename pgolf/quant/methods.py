"""The methods that take their steps as given, matrix by matrix, the control tensors, and what each tensor lost."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from pgolf.config.quantize import QuantizeConfig
from pgolf.errors import PgolfError
from pgolf.quant import error_feedback, gptq, rtn
from pgolf.quant.hessian import Calibration
from pgolf.quantized.dequantize import dequantize
from pgolf.quantized.tensors import QuantizedModel, QuantizedTensor

HALF_LIMIT = 2.0**-10  # control tensors go to float16 where that moves no value by more than this share of the largest


@dataclass(frozen=True)
class TensorReport:
    """What quantization did to one matrix."""

    name: str
    role: str
    weights: int
    bits: float
    """Entropy of its symbols, per weight: what an ideal coder with one table for the tensor would spend."""
    relative_error: float
    """‖W − Ŵ‖ / ‖W‖."""
    output_error: float | None
    """The same of the layer's output on calibration tokens, which count as they did in calibration (by their squared
    gradient, or alike): the root of tr(E H Eᵀ) / tr(W H Wᵀ); None without them."""


def quantize_matrix(
    weight: np.ndarray, role: str, settings: QuantizeConfig, calibration: Calibration | None
) -> QuantizedTensor:
    """Integers for one matrix (rows, columns) by the configured method, at the bits of its role."""
    bits, sigmas = settings.role_bits(role), settings.role_sigmas(role)
    if settings.method == "rtn":
        return rtn.quantize(weight, role, int(bits), None)
    if settings.method == "sdclip":
        return rtn.quantize(weight, role, int(bits), sigmas)
    assert calibration is not None, f"{settings.method} without calibration"
    return gptq.quantize(weight, calibration.curvature, role, int(bits), sigmas, settings.damping)


def float_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of a model's state in float32, on the CPU."""
    return {name: tensor.detach().float().cpu() for name, tensor in model.state_dict().items()}


def check_finite(weights: Mapping[str, torch.Tensor]) -> None:
    """Raise PgolfError naming the first tensor that holds NaN or infinity."""
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise PgolfError(f"{name} holds NaN or infinity: this checkpoint cannot be quantized; train it again")


def control_tensors(weights: Mapping[str, torch.Tensor], roles: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Everything that is no matrix, in float16 where half precision keeps every value, in float32 where not."""
    return {name: half_or_float(tensor) for name, tensor in weights.items() if name not in roles}


def half_or_float(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` in float16, or in float32 where float16 would overflow or lose the small values beside large ones."""
    half = tensor.to(torch.float16)
    error = (half.double() - tensor.double()).abs()
    fits = bool(torch.isfinite(half).all()) and bool((error <= HALF_LIMIT * tensor.double().abs() + 1e-7).all())
    return half if fits else tensor.to(torch.float32)


def report(
    weights: Mapping[str, torch.Tensor], model: QuantizedModel, calibration: Mapping[str, Calibration]
) -> list[TensorReport]:
    """Per matrix: entropy, relative error, and output error on the calibration tokens."""
    return [
        _tensor_report(name, weights[name].double().numpy(), tensor, calibration.get(name))
        for name, tensor in model.matrices.items()
    ]


def _tensor_report(
    name: str, weight: np.ndarray, tensor: QuantizedTensor, calibration: Calibration | None
) -> TensorReport:
    error = weight - dequantize(tensor).double().numpy()
    size = float(np.sum(weight * weight))
    output = None
    if calibration is not None:
        signal = error_feedback.loss(weight, calibration.curvature)
        output = (
            float(np.sqrt(max(0.0, error_feedback.loss(error, calibration.curvature)) / signal)) if signal > 0 else 0.0
        )
    return TensorReport(
        name=name,
        role=tensor.role,
        weights=weight.size,
        bits=entropy(tensor.symbols),
        relative_error=float(np.sqrt(np.sum(error * error) / size)) if size > 0 else 0.0,
        output_error=output,
    )


def entropy(symbols: np.ndarray) -> float:
    """Bits per symbol of the empirical distribution of integers, any shape."""
    if not symbols.size:
        return 0.0
    counts = np.unique(symbols, return_counts=True)[1].astype(np.float64)
    return float(np.log2(symbols.size) - np.sum(counts * np.log2(counts)) / symbols.size)
