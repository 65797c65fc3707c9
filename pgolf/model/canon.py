"""Short causal depthwise convolution on the inputs of attention and MLP ("Canon layers", arXiv 2512.17351).

`h_t + sum_k w_k h_(t-k)`, k from 1 to `canon_taps`, w_k one vector of `dim` per tap, starting at zero (the identity). A
document's first tokens see nothing of the document before. The weights are few: control tensors, not quantized.
"""

import torch
from torch import Tensor, nn

from pgolf.model.layers import previous


class Canon(nn.Module):
    def __init__(self, taps: int, dim: int) -> None:
        super().__init__()
        self.taps = nn.Parameter(torch.zeros(taps, dim))

    def forward(self, h: Tensor, inside: Tensor) -> Tensor:
        """h (B, T, dim), inside (B, T, 1) zero at document starts -> (B, T, dim)."""
        out, earlier = h, h
        for tap in self.taps.to(h.dtype):
            earlier = previous(earlier) * inside
            out = out + tap * earlier
        return out
