"""U-Net skips: the outputs of the first half of the blocks join the inputs of the second half.

Challenge baseline: before second-half block j, `x = x + w s` with s the output popped from the first half, w starting
at 1. With gates (PR #1089) `x = g x + (1 - g) w s`, g = sigmoid(gamma) starting at one half. Starting w at 0 costs
+0.0104 BPB (ternary record of 2026-03-24). Pairs are counted over executed blocks, so their meaning moves when looping
switches on.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pgolf.config.model import ModelConfig


class Skip(NamedTuple):
    """What a block joins to its stream before all else."""

    stream: Tensor
    """(B, T, dim), what a block of the first half put out."""
    weight: Tensor
    gate: Tensor | None
    """(dim,) both; the gate before its sigmoid."""


class Skips(nn.Module):
    def __init__(self, config: ModelConfig, pairs: int) -> None:
        """pairs: skips at the greatest depth the model runs at."""
        super().__init__()
        self.weights = nn.Parameter(torch.ones(pairs, config.dim))
        self.gates = nn.Parameter(torch.zeros(pairs, config.dim)) if config.skip_gates else None

    def pairs(self) -> list[tuple[Tensor, Tensor | None]]:
        """Weight and gate of every pair, in the order in which they join."""
        weights = self.weights.unbind()
        return list(zip(weights, [None] * len(weights) if self.gates is None else self.gates.unbind(), strict=True))


def join(x: Tensor, skip: Skip) -> Tensor:
    """x (B, T, dim), the stream, with what the skip brings back.

    The block calls it, so that one compiled kernel joins, mixes and norms: between compiled blocks a join would move
    3.0 GB of a record's step through memory, inside one it moves 0.4.
    """
    brought = skip.weight.to(x.dtype) * skip.stream
    if skip.gate is None:
        return x + brought
    gate = torch.sigmoid(skip.gate).to(x.dtype)
    return gate * x + (1 - gate) * brought


def join_mix(mix: Tensor, skip: Skip | None) -> Tensor:
    """The join in the weights of a mixture that follows it.

    mix (2, dim), of the stream and of another -> (3, dim), of the stream before the join, of the other, and of what the
    skip brings back; mix itself without a skip.
    """
    if skip is None:
        return mix
    kept, brought = mix[0], mix[0] * skip.weight
    if skip.gate is not None:
        gate = torch.sigmoid(skip.gate)
        kept, brought = gate * kept, (1 - gate) * brought
    return torch.stack([kept, mix[1], brought])
