"""SmearGate: a gated share of the previous token's embedding, never across a document start.

`x_t + lambda sigmoid(w . x_t[:12]) x_(t-1)` on the raw embedding, w and lambda starting at 0 (NanoGPT speedrun;
challenge PR #1667). Without the document boundary a packed document's first token carries the last one of the
document before: the leak fixed in PR #1851, -0.0018 BPB.
"""

import torch
from torch import Tensor, nn

from pgolf.model.layers import previous

WIDTH = 12  # PR #1667


class SmearGate(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(min(WIDTH, dim)))
        self.strength = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, inside: Tensor) -> Tensor:
        """x (B, T, dim), inside (B, T, 1) zero at document starts -> (B, T, dim)."""
        gate = torch.sigmoid(x[..., : len(self.weight)] @ self.weight.to(x.dtype))[..., None]
        return x + self.strength.to(x.dtype) * gate * inside * previous(x)
