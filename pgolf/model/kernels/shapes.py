"""Output shapes of the kernels for torch.compile; importing this module registers them."""

import torch
from torch import Tensor

from pgolf.model.kernels import bfloat16, bfloat16_attention, heads, mlp, residual
from pgolf.model.kernels.attention import attention, attention_backward
from pgolf.model.kernels.linear import linear, linear_backward


@attention.register_fake
def _forward(q: Tensor, k: Tensor, v: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor]:
    return torch.empty(q.shape), torch.empty(q.shape[0], q.shape[2], q.shape[1])


@attention_backward.register_fake
def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, first: Tensor | None, y: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty(q.shape), torch.empty(k.shape), torch.empty(v.shape)


@heads.heads.register_fake
def _heads(
    rows: Tensor,
    cos: Tensor,
    sin: Tensor,
    gain: Tensor,
    first: Tensor | None,
    head_dim: int,
    exclusive: bool,
    factor: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    (batch, length, _), count = rows.shape, len(gain)
    along = torch.empty((batch, length, count) if exclusive else 0)
    return torch.empty(batch, length, count, head_dim), torch.empty(batch, count, length), along


@heads.heads_backward.register_fake
def _heads_gradients(
    grad: Tensor,
    rows: Tensor,
    cos: Tensor,
    sin: Tensor,
    gain: Tensor,
    first: Tensor | None,
    out: Tensor,
    lse: Tensor,
    along: Tensor,
    factor: float | None,
) -> tuple[Tensor, Tensor]:
    return torch.empty(rows.shape), torch.empty(gain.shape)


@linear.register_fake
def _product(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))


@linear_backward.register_fake
def _gradients(grad: Tensor, x: Tensor, weight: Tensor, by_x: bool, by_weight: bool) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape if by_x else 0), x.new_empty(weight.shape if by_weight else 0)


@bfloat16_attention.attention.register_fake
def _tiled_forward(q: Tensor, k: Tensor, v: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor]:
    return torch.empty(q.shape), torch.empty(q.shape[0], q.shape[2], q.shape[1])


@bfloat16_attention.attention_backward.register_fake
def _tiled_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, first: Tensor | None, y: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty(q.shape), torch.empty(k.shape), torch.empty(v.shape)


@residual.enter.register_fake
def _enter(
    x: Tensor,
    other: Tensor,
    skip: Tensor | None,
    mix: Tensor | None,
    taps: Tensor | None,
    inside: Tensor | None,
    factor: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return torch.empty(x.shape), torch.empty(x.shape)


@residual.enter_backward.register_fake
def _enter_gradients(
    d_mixed: Tensor,
    d_h: Tensor,
    x: Tensor,
    other: Tensor,
    skip: Tensor | None,
    mix: Tensor | None,
    taps: Tensor | None,
    inside: Tensor | None,
    factor: Tensor | None,
    mixed: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d_other, d_skip = x.new_empty(0 if mix is None else x.shape), x.new_empty(0 if skip is None else x.shape)
    return x.new_empty(x.shape), d_other, d_skip, x.new_empty(3 + (0 if taps is None else len(taps)), x.shape[-1])


@residual.norm.register_fake
def _norm(x: Tensor) -> Tensor:
    return torch.empty(x.shape)


@residual.norm_backward.register_fake
def _norm_gradient(grad: Tensor, x: Tensor) -> Tensor:
    return torch.empty(x.shape)


@mlp.mlp.register_fake
def _mlp(x: Tensor, fc: Tensor, proj: Tensor, slope: float, onto: Tensor | None) -> tuple[Tensor, Tensor]:
    return torch.empty(x.shape), x.new_empty(x.numel() // x.shape[-1], mlp.padded_width(len(fc)))


@mlp.mlp_backward.register_fake
def _mlp_gradients(
    grad: Tensor, x: Tensor, fc: Tensor, proj: Tensor, z: Tensor, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty(x.shape), torch.empty(fc.shape), torch.empty(proj.shape)


@bfloat16.linear.register_fake
def _tiled_product(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))


@bfloat16.linear_backward.register_fake
def _tiled_gradients(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(weight.shape)


@bfloat16.mlp.register_fake
def _tiled_mlp(x: Tensor, fc: Tensor, proj: Tensor, slope: float) -> Tensor:
    return x.new_empty(x.shape)


@bfloat16.mlp_backward.register_fake
def _tiled_mlp_gradients(
    grad: Tensor, x: Tensor, fc: Tensor, proj: Tensor, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(fc.shape), x.new_empty(proj.shape)
