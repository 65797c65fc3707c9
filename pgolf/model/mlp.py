"""The MLP with a squared activation.

relu squared (arXiv 2109.08668), or with `mlp_slope` 0.5 leaky relu squared: z^2 above zero, z^2 / 4 below, so that no
unit dies (challenge PR #549: -0.0021 BPB; slope 0.3 equal).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf.config.model import ModelConfig
from pgolf.model.kernels import bfloat16, mlp
from pgolf.model.layers import Linear


class MLP(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden = round(config.dim * config.mlp_ratio)
        self.slope = config.mlp_slope
        self.native = False  # whether the C kernel computes it in training
        self.fc = Linear(config.dim, hidden)
        self.proj = Linear(hidden, config.dim)

    def forward(self, h: Tensor, scale: Tensor | None = None, onto: Tensor | None = None) -> Tensor:
        """h (..., dim) -> (..., dim), times scale (dim,), plus onto (..., dim)."""
        tiles = self.fc.products == "tiles"
        if (tiles or (self.native and h.dtype == torch.float32)) and torch.is_grad_enabled():
            proj = self.proj.weight if scale is None else scale[:, None] * self.proj.weight
            given = h, self.fc.weight, proj, self.slope
            if not tiles:
                return mlp.mlp(*given, onto)[0]
            y = bfloat16.mlp(*given)
        else:
            z = self.fc(h)
            z = F.relu(z) if self.slope == 0.0 else F.leaky_relu(z, self.slope)
            y = self.proj(z * z, scale)
        return y if onto is None else onto + y
