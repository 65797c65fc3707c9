"""What every block of one forward pass shares."""

from typing import NamedTuple

from torch import Tensor


class Step(NamedTuple):
    x0: Tensor
    """(B, T, dim), the normed embedding."""
    cos: Tensor
    sin: Tensor
    """(T, rotating dims / 2)."""
    inside: Tensor | None
    """(B, T, 1) in the activations' type: 0 where a document starts, 1 elsewhere; for parts that look one back."""
