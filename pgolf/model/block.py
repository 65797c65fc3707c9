"""One block: attention and MLP around the residual stream, one after the other or side by side."""

import torch
from torch import Tensor, nn

from pgolf.config.model import ModelConfig
from pgolf.model.attention import Attention
from pgolf.model.layers import rms_norm
from pgolf.model.mlp import MLP


class Block(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.attn_scale = nn.Parameter(torch.ones(config.dim))
        self.mlp_scale = nn.Parameter(torch.ones(config.dim))
        if config.x0_mix:
            self.resid_mix = nn.Parameter(torch.stack([torch.ones(config.dim), torch.zeros(config.dim)]))
        self.x0_mix = config.x0_mix
        self.parallel = 0 <= config.parallel_from <= layer

    def forward(self, x: Tensor, x0: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x and x0 (B, T, dim), the stream and the normed embedding -> the stream after this block."""
        if self.x0_mix:
            mix = self.resid_mix.to(x.dtype)
            x = mix[0] * x + mix[1] * x0
        h = rms_norm(x)
        attended = self.attn_scale.to(x.dtype) * self.attn(h, cos, sin)
        if self.parallel:
            return x + attended + self.mlp_scale.to(x.dtype) * self.mlp(h)
        x = x + attended
        return x + self.mlp_scale.to(x.dtype) * self.mlp(rms_norm(x))
