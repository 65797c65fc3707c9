"""Values shared by all blocks of one forward pass."""

from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

if TYPE_CHECKING:  # a program that only scores and trains does not need the module
    from pgolf.model.key_value_cache import KeyValueCache


class Step(NamedTuple):
    x0: Tensor
    """(B, T, dim), the normed embedding."""
    cos: Tensor
    sin: Tensor
    """(T, rotating dims / 2)."""
    inside: Tensor | None
    """(B, T, 1) in the activations' type: 0 where a document starts, 1 elsewhere; for parts that look one back."""
    cache: "KeyValueCache | None" = None
    """Keys and values of the positions before the T given ones, which are the last of `total`."""
    total: int = 0
