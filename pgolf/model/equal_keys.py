"""Find equal keys in a tensor of integers by sorting them."""

import torch
from torch import Tensor


def numbered(keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """keys (N,) -> numbers below N, equal where keys are; the keys' stable order; (N-1,) where it repeats a key."""
    ordered, ranked = keys.sort(stable=True)
    same = ordered[1:] == ordered[:-1]
    numbers = torch.zeros_like(keys)
    numbers[ranked[1:]] = (~same).cumsum(0)
    return numbers, ranked, same
