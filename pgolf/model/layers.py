"""Basic layers: a linear map, a norm without weights, a shift by one token.

Weights stay float32; a map casts its weight to the dtype of its input, so the same code runs in float32 on a
CPU and in bfloat16 on a GPU.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf.model.kernels import bfloat16
from pgolf.model.kernels.linear import fast_linear

NORM_EPS = torch.finfo(torch.float32).eps  # torch's own default for float32, the same in every activation type


class Linear(nn.Linear):
    """`y = x W^T`, W (out, in), no bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)
        self.products = "torch"  # or "C", "bfloat16", "tiles": chosen by `fast_paths`

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """x (..., in) -> (..., out), times scale (out,). It is the weight that is scaled: in training the gradient by
        scale then is a sum over the weight's gradient, not over all tokens."""
        return self.times(x, self.weight if scale is None else scale[:, None] * self.weight)

    def times(self, x: Tensor, weight: Tensor) -> Tensor:
        """x times another weight (any, in), in this layer's way."""
        if self.products == "C":
            return fast_linear(x, weight)
        if self.products == "tiles" and torch.is_grad_enabled():
            return bfloat16.linear(x, weight)
        if self.products == "bfloat16" and torch.is_grad_enabled():
            return bfloat16_linear(x, weight)
        return F.linear(x, weight.to(x.dtype))


def bfloat16_linear(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T with factors rounded to bfloat16, forward and backward; the result has x's type."""
    return F.linear(x.bfloat16(), weight.bfloat16()).to(x.dtype)


def rms_norm(x: Tensor) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last dimension."""
    return F.rms_norm(x, (x.shape[-1],), eps=NORM_EPS)


def previous(x: Tensor) -> Tensor:
    """x (B, T, ...) moved on by one position; the first one is zero."""
    return F.pad(x[:, :-1], (0, 0) * (x.ndim - 2) + (1, 0))
