"""Mean KL divergence per token of a changed model from the original, on given tokens.

KL is quadratic from zero in a small change of the weights and much less noisy than a difference of losses, so a few
thousand tokens rank tensors that a loss difference could not.
"""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pgolf.model.gpt import GPT
from pgolf.quant import precision


class Divergence:
    """KL(original ‖ changed) in nats per token, in float32 whatever type the model computes in.

    The original's final states are kept, not its distributions: they take vocab_size / dim less memory.
    """

    def __init__(self, model: GPT, batches: Sequence[Tensor]) -> None:
        """model: the original, left as it is; batches: token ids (B, T)."""
        self.model = model.eval()
        self.batches = list(batches)
        self.tokens = sum(batch.numel() for batch in batches)
        self._scratch = copy.deepcopy(model)
        with torch.no_grad(), precision.float32(model):
            self._states = [model.states(batch) for batch in self.batches]

    @torch.no_grad()
    def of(self, changed: Mapping[str, Tensor]) -> float:
        """With the named weights in place of the original ones, all others as they are."""
        original = dict(self.model.named_parameters())
        parameters = dict(self._scratch.named_parameters())
        for name, tensor in changed.items():
            parameters[name].copy_(tensor)
        model, scratch, total = self.model, self._scratch, 0.0
        with precision.float32(model, scratch):
            for batch, states in zip(self.batches, self._states, strict=True):
                logits = scratch.logit_chunks(scratch.states(batch)), model.logit_chunks(states)
                for found, wanted in zip(*logits, strict=True):
                    cap = model.config.logit_softcap
                    if model.softcap_shift is not None:  # two caps
                        found, wanted, cap = scratch.capped(found), model.capped(wanted), 0.0
                    total += float(model.divergence(found, wanted, None, cap).sum(dtype=torch.float64))
        for name in changed:
            parameters[name].copy_(original[name])
        return total / self.tokens


def mean(model: GPT, student: GPT, tokens: Tensor) -> Tensor:
    """Mean KL(model ‖ student) over tokens (B, T) in nats, a scalar differentiable by the student's weights."""
    with torch.no_grad():
        wanted = model.logit_chunks(model.states(tokens))

    def of_chunk(z: Tensor, _: Tensor, weights: Tensor | None, cap: float) -> Tensor:
        """The loss of a chunk in place of that of targets."""
        with torch.no_grad():
            return student.divergence(z, next(wanted), weights, cap)

    weights = torch.full((tokens.numel(), 1), 1.0 / tokens.numel(), device=tokens.device)
    arithmetic = student.arithmetic._replace(softmax=of_chunk, whole=None)
    return student.weighted_loss(tokens, weights, weights, arithmetic)
