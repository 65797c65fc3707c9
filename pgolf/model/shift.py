"""Looking one token back."""

import torch.nn.functional as F
from torch import Tensor


def previous(x: Tensor) -> Tensor:
    """x (B, T, ...) moved on by one position; the first one is zero."""
    return F.pad(x[:, :-1], (0, 0) * (x.ndim - 2) + (1, 0))
