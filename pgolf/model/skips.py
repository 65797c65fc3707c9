"""U-Net skips with learned gates: what the first half of the blocks put out comes back in the second half.

Challenge baseline, the gates since PR #1089: before second-half block j, `x = g x + (1 - g) w s` with s the output
popped from the first half, w starting at 1 and g = sigmoid(gamma) at one half. Starting w at 0 costs +0.0104 BPB
(ternary record of 2026-03-24). Pairs are counted over executed blocks, so their meaning moves when looping switches
on.
"""

import torch
from torch import Tensor, nn


class Skips(nn.Module):
    def __init__(self, pairs: int, dim: int) -> None:
        """pairs: skips at the greatest depth the model runs at."""
        super().__init__()
        self.weights = nn.Parameter(torch.ones(pairs, dim))
        self.gates = nn.Parameter(torch.zeros(pairs, dim))

    def join(self, index: int, x: Tensor, skipped: Tensor) -> Tensor:
        """x and skipped (B, T, dim): the stream and the output that pair `index` brings back."""
        gate = torch.sigmoid(self.gates[index]).to(x.dtype)
        return gate * x + (1 - gate) * self.weights[index].to(x.dtype) * skipped
