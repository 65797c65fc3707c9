"""One block: attention and MLP around the residual stream, one after the other or side by side.

Side by side ("parallel residual", challenge PR #1412) both read the same input: a smaller loss when quantized, fewer
dependent steps. `norm_scale` damps deep layers by 1 / sqrt(layer + 1) (record 2026-03-21).
"""

import torch
from torch import Tensor, nn

from pgolf.config.model import ModelConfig
from pgolf.model.attention import Attention
from pgolf.model.attention_mask import View
from pgolf.model.forward_context import Step
from pgolf.model.layers import rms_norm
from pgolf.model.mlp import MLP


class Block(nn.Module):
    norm_factor: Tensor | None

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.attn_scale = nn.Parameter(torch.ones(config.dim))
        self.mlp_scale = nn.Parameter(torch.ones(config.dim))
        self.resid_mix = (
            nn.Parameter(torch.stack([torch.ones(config.dim), torch.zeros(config.dim)])) if config.x0_mix else None
        )
        self.parallel = 0 <= config.parallel_from <= layer
        # A tensor, not a number: one compiled block then serves every layer.
        factor = torch.tensor((layer + 1) ** -0.5) if config.norm_scale else None
        self.register_buffer("norm_factor", factor, persistent=False)

    def forward(self, x: Tensor, step: Step, view: View, values: Tensor | None = None, last: int = 0) -> Tensor:
        """x (B, T, dim), the stream; the rest as in `Attention` -> the stream after this block, (B, last or T, dim)."""
        x = self.mixed(x, step)
        h = self.normed(x)
        attended = self.attended(h, step, view, values, last)
        if last:
            x, h = x[:, -last:], h[:, -last:]  # (B, last, dim)
        if self.parallel:
            return x + attended + self.expanded(h)
        x = x + attended
        return x + self.expanded(self.normed(x))

    def mixed(self, x: Tensor, step: Step) -> Tensor:
        """The stream with its learned share of the normed embedding."""
        if self.resid_mix is None:
            return x
        mix = self.resid_mix.to(x.dtype)
        return mix[0] * x + mix[1] * step.x0

    def normed(self, x: Tensor) -> Tensor:
        h = rms_norm(x)
        return h if self.norm_factor is None else h * self.norm_factor.to(h.dtype)

    def attended(self, h: Tensor, step: Step, view: View, values: Tensor | None = None, last: int = 0) -> Tensor:
        """What attention adds to the stream."""
        return self.attn_scale.to(h.dtype) * self.attn(h, step, view, values, last)

    def expanded(self, h: Tensor) -> Tensor:
        """What the MLP adds to the stream."""
        return self.mlp_scale.to(h.dtype) * self.mlp(h)
