"""A quantized model: what the quantizers make, the codec stores, and every evaluator dequantizes.

Nothing in it is a float that a decoder would have to compute: symbols and scale indices are integers, so two machines
that hold the same QuantizedModel hold the same weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from pgolf.errors import PgolfError


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """One weight matrix as integers on a grid.

    The weight at (r, c) is `level(r, c) * 2 ** ((row_scale[r] + col_scale[c]) / resolution)`, computed in float64 and
    rounded once to float32. With `trellis` 0 the level is the symbol itself. With 4 or 8 states the symbols of one
    column, cut in segments of `segment` rows that each begin in state 0, are the levels q of dependent quantization:
    `level = 2 q - sign(q) * kappa(state)`, the state moving by the parity of q (ISO/IEC 15938-17).
    """

    role: str  # "embed", "attn", "mlp", or another group that shares statistics
    symbols: np.ndarray  # (rows, columns) int32
    row_scale: np.ndarray  # (rows,) int16, index on the logarithmic grid; the tensor's own constant is included
    col_scale: np.ndarray  # (columns,) int16
    resolution: int = 8  # grid steps per octave
    trellis: int = 0  # number of states: 0, 4 or 8
    segment: int = 128  # rows per trellis segment

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.symbols.shape
        return rows, columns


@dataclass(frozen=True, eq=False)
class QuantizedModel:
    """All weights of a model: matrices as integers, control tensors (gains, scales, gates) as they are stored."""

    matrices: Mapping[str, QuantizedTensor]  # by parameter name, in the model's order
    controls: Mapping[str, torch.Tensor]  # by parameter name: float16, bfloat16 or float32, stored exactly
    header: Mapping[str, Any] = field(
        default_factory=dict
    )  # JSON-able: the model's configuration and what a reader needs

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Dequantized float32 tensors by parameter name, ready for `GPT.load_state_dict`."""
        from pgolf.quantized.dequantize import dequantize  # the trellis walk lives there

        both = set(self.matrices) & set(self.controls)
        if both:
            raise PgolfError(f"tensor {min(both)} is stored twice")
        weights = {name: dequantize(tensor) for name, tensor in self.matrices.items()}
        return weights | {name: tensor.to(torch.float32) for name, tensor in self.controls.items()}
