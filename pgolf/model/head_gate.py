"""A gate on each head's output, from the block's normed input (arXiv 2505.06708).

It lets a head output nothing, instead of attending to the first token for that purpose. `sparse` reads 12 dimensions
and
starts at one half (challenge PR #1787: 96 weights a layer), its input times `head_gate_factor`: 1.0 in PR #1787, #1851
and #1868, 0.5 in #1855. `dense` reads all dimensions (PR #1736, about -0.002 BPB with CaseOps). The weights are few and
sensitive: control tensors, not quantized.
"""

import torch
from torch import Tensor, nn

SPARSE_WIDTH = 12  # the records'; 8 was worse, 32 not always better
DENSE_STD = 0.005  # PR #1736


class HeadGate(nn.Module):
    def __init__(self, kind: str, dim: int, heads: int, factor: float) -> None:
        """factor: of the gate's input; `sparse` only."""
        super().__init__()
        self.width, self.factor = (min(SPARSE_WIDTH, dim), factor) if kind == "sparse" else (dim, 1.0)
        self.weight = nn.Parameter(torch.zeros(heads, self.width))
        if kind == "dense":
            nn.init.normal_(self.weight, std=DENSE_STD)

    def forward(self, y: Tensor, h: Tensor) -> Tensor:
        """y (B, T, H, D) times a gate in (0, 1) per head, made from h (B, T, dim)."""
        z = h[..., : self.width] @ self.weight.to(h.dtype).T  # (B, T, H)
        return y * torch.sigmoid(self.factor * z)[..., None]
