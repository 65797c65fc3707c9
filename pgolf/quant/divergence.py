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
        total = 0.0
        with precision.float32(self.model, self._scratch):
            for batch, reference in zip(self.batches, self._hidden, strict=True):
                hidden = self._scratch.hidden(batch).flatten(0, 1)
                for before, after in _chunks(reference, hidden):
                    total += float(kl(self.model.logits(before), self._scratch.logits(after)).sum(dtype=torch.float64))
        for name in changed:
            parameters[name].copy_(original[name])
        return total / self.tokens


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    yield from zip(*(tensor.split(CHUNK_TOKENS) for tensor in tensors), strict=True)


def kl(reference: Tensor, other: Tensor) -> Tensor:
    """KL divergence of each position, (N,) nats, from logits (N, V) of both."""
    log_p, log_q = torch.log_softmax(reference.float(), -1), torch.log_softmax(other.float(), -1)
    return torch.sum(log_p.exp() * (log_p - log_q), dim=-1)
