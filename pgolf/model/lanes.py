"""Parallel residuals in two lanes with learned routing (challenge PR #1530; after PR #1204: -0.0022 BPB, one seed).

From the first parallel layer on, attention reads lane a and the MLP lane b, both as they were before the block; both
write into both: `a = r_a a + p_a0 A + p_m0 M`, `b = r_b b + p_a1 A + p_m1 M`. r starts at 1.1, p at 1; after the last
block the lanes are averaged. Lane b starts from the stream before the skip of the first parallel layer joins; skips
enter lane a.
"""

import torch
from torch import Tensor, nn

from pgolf.model.attention_mask import View
from pgolf.model.block import Block
from pgolf.model.forward_context import Step
from pgolf.model.skips import Skip, join

KEEP = 1.1  # start of r, PR #1530 and the speedrun


class Lanes(nn.Module):
    def __init__(self, layers: int) -> None:
        """layers: how many layers run in two lanes."""
        super().__init__()
        self.keep = nn.Parameter(torch.full((layers, 2), KEEP))
        self.write = nn.Parameter(torch.ones(layers, 2, 2))  # (layer, attention or MLP, lane)

    def routes(self) -> list[tuple[Tensor, Tensor]]:
        """`keep` and `write` of every layer in two lanes."""
        return list(zip(self.keep.unbind(), self.write.unbind(), strict=True))


def advance(
    route: tuple[Tensor, Tensor],
    block: Block,
    a: Tensor,
    b: Tensor,
    shared: Step,
    view: View,
    values: Tensor | None,
    last: int = 0,
    skip: Skip | None = None,
) -> tuple[Tensor, Tensor]:
    """Lanes a and b (B, T, dim) through one block; (B, last, dim) with `last`.

    route: the layer's of `Lanes.routes`; tensors and no number, so that one compiled function serves every layer.
    """
    a = a if skip is None else join(a, skip)
    attended = block.attended(block.normed(block.mixed(a, shared)), shared, view, values, last)
    expanded = block.expanded(block.normed(b), shared, last)
    if last:
        a, b = a[:, -last:], b[:, -last:]  # (B, last, dim)
    keep, write = (part.to(a.dtype) for part in route)
    return (
        keep[0] * a + write[0, 0] * attended + write[1, 0] * expanded,
        keep[1] * b + write[0, 1] * attended + write[1, 1] * expanded,
    )
