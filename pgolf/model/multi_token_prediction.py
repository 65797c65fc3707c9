"""Multi-token prediction as a loss that exists in training only and fades out.

The same logits are also scored against the tokens after the next one; no parameters (NanoGPT speedrun: weights 1,
0.5, 0.25 falling to 1). Worse in nanochat and +0.006 BPB in the ternary record, so it is off unless a shape gains by
it.
"""

import torch
from torch import Tensor

from pgolf.config.model import ModelConfig


def share(config: ModelConfig, fraction: float) -> float:
    """Factor of the loss weights of later tokens: 1 at the start, 0 from `future_until` on."""
    if not config.future_weights or config.future_until <= 0:
        return 0.0
    return max(0.0, 1.0 - fraction / config.future_until)


def targets(following: Tensor, config: ModelConfig, share: float) -> tuple[Tensor, Tensor]:
    """Targets (B T, K) and their weights (B T, K) float32, whose next-token part sums to one, from (B, T) next tokens.

    A further token has no weight behind the start of another document or the end of the row.
    """
    count = following.numel()
    wanted, weights = [following], [torch.full(following.shape, 1.0 / count, device=following.device)]
    alive = torch.ones_like(following, dtype=torch.bool)
    for ahead, weight in enumerate(config.future_weights, start=1):
        alive = alive & (torch.roll(following, 1 - ahead, dims=1) != config.bos_id)
        alive[:, -ahead:] = False
        wanted.append(torch.roll(following, -ahead, dims=1))
        weights.append(alive * (share * weight / count))
    return torch.stack(wanted, -1).flatten(0, 1), torch.stack(weights, -1).flatten(0, 1)
