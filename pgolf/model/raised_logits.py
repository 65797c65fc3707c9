"""Single logits that a part of the model raises, beside the product of final state and output embedding.

They are sparse: every position names n tokens and an amount for each. Code that hands final states on, to score or to
differentiate some of them, needs nothing but the states: `Raised.beside` puts tokens and amounts behind each state, and
`split` takes them apart again in front of the head. The loss, which sees whole rows, takes any form that does what
`Raising` says.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

Gradients = tuple[Any, ...]  # a tensor for each tensor of a form; None where that does not learn


class Raising(Protocol):
    """A named tuple of tensors that say how much to add to the logits of N tokens."""

    def __iter__(self) -> Iterator[Tensor]: ...

    def spread(self) -> "Raised":
        """The same as single tokens and amounts; differentiable."""

    def add(self, z: Tensor, part: slice) -> None:
        """Raise the logits z (n, V) of the tokens `part` in place."""

    def gradients(self) -> Gradients:
        """Room for the gradients, which `differentiate` fills part by part."""

    def differentiate(self, z: Tensor, part: slice, gradients: Gradients) -> None:
        """Fill in what follows from z (n, V), the gradient by the logits of the tokens `part`."""


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

    def flat(self) -> "Raised":
        """As (N, n)."""
        return Raised(self.tokens.flatten(0, -2), self.amounts.flatten(0, -2))

    def spread(self) -> "Raised":
        """See `Raising`."""
        return self

    def add(self, z: Tensor, part: slice) -> None:
        """See `Raising`."""
        tokens, amounts = self.flat()
        z.scatter_add_(1, tokens[part], amounts[part].to(z.dtype))

    def gradients(self) -> Gradients:
        """See `Raising`."""
        return None, self.amounts.new_empty(self.amounts.shape)

    def differentiate(self, z: Tensor, part: slice, gradients: Gradients) -> None:
        """See `Raising`."""
        gradients[1].flatten(0, -2)[part] = z.gather(1, self.flat().tokens[part])


def split(state: Tensor, dim: int) -> tuple[Tensor, Raised | None]:
    """What `Raised.beside` has put together; None for a state alone, (..., dim)."""
    if state.shape[-1] == dim:
        return state, None
    x, tokens, amounts = state.tensor_split((dim, (dim + state.shape[-1]) // 2), -1)
    return x.contiguous(), Raised(tokens.detach().long(), amounts)  # the kernels take rows without gaps


def joined(parts: Iterable[Raising]) -> Raised | None:
    """All that the parts raise; None if there is no part."""
    columns = list(zip(*(part.spread() for part in parts), strict=True))
    return Raised(*(torch.cat(column, -1) for column in columns)) if columns else None
