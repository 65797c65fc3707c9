"""U-Net skips: the outputs of the first half of the blocks join the inputs of the second half.

Challenge baseline: before second-half block j, `x = x + w s` with s the output popped from the first half, w starting
at 1. With gates (PR #1089) `x = g x + (1 - g) w s`, g = sigmoid(gamma) starting at one half. Starting w at 0 costs
+0.0104 BPB (ternary record of 2026-03-24). Pairs are counted over executed blocks, so their meaning moves when looping
switches on.
"""

import torch
from torch import Tensor, nn

from pgolf.config.model import ModelConfig


class Skips(nn.Module):
    def __init__(self, config: ModelConfig, pairs: int) -> None:
        """pairs: skips at the greatest depth the model runs at."""
        super().__init__()
        self.weights = nn.Parameter(torch.ones(pairs, config.dim))
        self.gates = nn.Parameter(torch.zeros(pairs, config.dim)) if config.skip_gates else None

    def join(self, index: int, x: Tensor, skipped: Tensor) -> Tensor:
        """x and skipped (B, T, dim): the stream and the output that pair `index` brings back."""
        brought = self.weights[index].to(x.dtype) * skipped
        if self.gates is None:
            return x + brought
        gate = torch.sigmoid(self.gates[index]).to(x.dtype)
        return gate * x + (1 - gate) * brought
