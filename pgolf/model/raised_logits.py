"""Single logits that a part of the model raises, beside the product of final state and output embedding.

They are sparse: every position names n tokens and an amount for each. Code that hands final states on, to score or to
differentiate some of them, needs nothing but the states: `Raised.beside` puts tokens and amounts behind each state, and
`split` takes them apart again in front of the head.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class Raised(NamedTuple):
    """Tokens whose logits are raised, int64 (..., n), and by how much, (..., n). A token may stand there twice."""

    tokens: Tensor
    amounts: Tensor

    def beside(self, state: Tensor) -> Tensor:
        """state (..., dim) -> (..., dim + 2 n) float32, which holds every token number exactly."""
        return torch.cat((state.float(), self.tokens.float(), self.amounts.float()), -1)

    def on(self, logits: Tensor) -> Tensor:
        """logits (..., V) -> the raised ones."""
        return logits.scatter_add(-1, self.tokens, self.amounts.to(logits.dtype))


def split(state: Tensor, dim: int) -> tuple[Tensor, Raised | None]:
    """What `Raised.beside` has put together; None for a state alone, (..., dim)."""
    if state.shape[-1] == dim:
        return state, None
    x, tokens, amounts = state.tensor_split((dim, (dim + state.shape[-1]) // 2), -1)
    return x.contiguous(), Raised(tokens.detach().long(), amounts)  # the kernels take rows without gaps


def joined(parts: Iterable[Raised]) -> Raised | None:
    """All that the parts raise; None if there is no part."""
    columns = list(zip(*parts, strict=True))
    return Raised(*(torch.cat(column, -1) for column in columns)) if columns else None
