"""Mean KL divergence per token of a changed model from the original, on given tokens.

KL is quadratic from zero in a small change of the weights and much less noisy than a difference of losses, so a few
thousand tokens rank tensors that a loss difference could not.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from pgolf.model.gpt import CHUNK_TOKENS, GPT
from pgolf.quant import precision


class Divergence:
    """KL(original ‖ changed) in nats per token, in float32 whatever type the model computes in.

    The original's final hidden states are kept, not its distributions: they take vocab_size / dim less memory.
    """

    def __init__(self, model: GPT, batches: Sequence[Tensor]) -> None:
        """model: the original, left as it is; batches: token ids (B, T)."""
        self.model = model.eval()
        self.batches = list(batches)
        self.tokens = sum(batch.numel() for batch in batches)
        self._scratch = copy.deepcopy(model)
        with torch.no_grad(), precision.float32(model):
            self._hidden = [model.hidden(batch).flatten(0, 1) for batch in self.batches]  # (B * T, dim)

    @torch.no_grad()
    def of(self, changed: Mapping[str, Tensor]) -> float:
        """With the named weights in place of the original ones, all others as they are."""
        original = dict(self.model.named_parameters())
        parameters = dict(self._scratch.named_parameters())
        for name, tensor in changed.items():
            parameters[name].copy_(tensor)
        total, cap = 0.0, self.model.config.logit_softcap
        logits = GPT.uncapped
        if self.model.softcap_shift is not None:  # two caps
            logits, cap = GPT.logits, 0.0
        with precision.float32(self.model, self._scratch):
            for batch, reference in zip(self.batches, self._hidden, strict=True):
                hidden = self._scratch.hidden(batch).flatten(0, 1)
                for before, after in _chunks(reference, hidden):
                    wanted, found = logits(self.model, before), logits(self._scratch, after)
                    total += float(self.model.divergence(found, wanted, None, cap).sum(dtype=torch.float64))
        for name in changed:
            parameters[name].copy_(original[name])
        return total / self.tokens


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    yield from zip(*(tensor.split(CHUNK_TOKENS) for tensor in tensors), strict=True)


def mean(model: GPT, student: GPT, tokens: Tensor) -> Tensor:
    """Mean KL(model ‖ student) over tokens (B, T) in nats, a scalar differentiable by the student's weights."""
    with torch.no_grad():
        reference = model.hidden(tokens).flatten(0, 1)  # (B T, dim)

    def of_chunk(z: Tensor, states: Tensor, weights: Tensor | None, cap: float) -> Tensor:
        with torch.no_grad():
            return student.divergence(z, model.uncapped(states), weights, cap)

    weights = torch.full((len(reference), 1), 1.0 / len(reference), device=reference.device)
    arithmetic = student.arithmetic._replace(softmax=of_chunk, whole=None)
    return student.weighted_loss(tokens, reference, weights, arithmetic)
