"""Per-matrix report of a quantized model: entropy, error of the weights, error of the layer's output."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from pgolf.quant import error_feedback
from pgolf.quant.hessian import Calibration
from pgolf.quantized.tensors import QuantizedModel, QuantizedTensor, dequantize


@dataclass(frozen=True)
class TensorReport:
    """Error and entropy of one quantized matrix."""

    name: str
    role: str
    weights: int
    bits: float
    """Entropy of the symbols in bits per weight: the cost under an ideal coder with one table per tensor."""
    relative_error: float
    """‖W − Ŵ‖ / ‖W‖."""
    output_error: float | None
    """The same of the layer's output on calibration tokens, weighted as in calibration (by their squared gradient, or
    equally): the root of tr(E H Eᵀ) / tr(W H Wᵀ); None without calibration."""


def report(
    weights: Mapping[str, torch.Tensor], model: QuantizedModel, calibration: Mapping[str, Calibration]
) -> list[TensorReport]:
    """One row per matrix; weights: the float ones, by parameter name; calibration: empty where there was none."""
    return [
        _row(name, weights[name].double().numpy(), tensor, calibration.get(name))
        for name, tensor in model.matrices.items()
    ]


def _row(name: str, weight: np.ndarray, tensor: QuantizedTensor, calibration: Calibration | None) -> TensorReport:
    error = weight - dequantize(tensor).double().numpy()
    size = float(np.sum(weight * weight))
    output = None
    if calibration is not None:
        signal = error_feedback.loss(weight, calibration.curvature)
        lost = max(0.0, error_feedback.loss(error, calibration.curvature))
        output = float(np.sqrt(lost / signal)) if signal > 0 else 0.0
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
