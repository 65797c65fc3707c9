"""Softcapped cross entropy without holding all logits at once.

The logits of a chunk of tokens exist at a time; their gradient overwrites them. In training the gradients by
hidden state and head are made in the same pass (the loss is a weighted sum whose weights are known beforehand), so
nothing is computed twice; `token_losses`, whose weights come only with the backward pass, recomputes the logits
there. The idea is that of the records' fused Triton loss (challenge PR #1787) and of the Liger kernels (arXiv
2410.10989).

Several targets per token share one softmax, which is all that multi-token prediction needs.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pgolf.model.raised_logits import Gradients, Raising

CHUNK_TOKENS, CHUNK_ELEMENTS = 384, 384 * 2048
"""Of a chunk, at least, on a CPU. With two threads the loss takes 6 to 9% less time than with 256 tokens, at one thread
the same. Longer ones gain 4 to 5% with 1,024 and with 8,192 pieces and lose up to 10% with 2,048
(benchmarks/results/training_speed.md)."""
GPU_CHUNK_ELEMENTS = 1 << 27  # 256 MB of bfloat16 logits, so that a chunk fills the device


def plain_softmax(z: Tensor, targets: Tensor, weights: Tensor | None, cap: float) -> Tensor:
    """Loss of each row of uncapped logits z (n, V), summed over its targets (n, K); (n,) float32.

    With weights (n, K) the losses are weighted and z is overwritten by the gradient of their sum.
    """
    squashed = torch.tanh(z.float() / cap) if cap else z.float()
    logits = cap * squashed if cap else squashed
    normalizer = logits.logsumexp(1, keepdim=True)  # (n, 1)
    losses = normalizer - logits.gather(1, targets)  # (n, K)
    if weights is None:
        return losses.sum(1)
    slope = (logits - normalizer).exp_().mul_(weights.sum(1, keepdim=True))
    if torch.compiler.is_compiling():  # the same bits; a scatter would force the float32 slopes through memory
        columns = torch.arange(z.shape[1], device=z.device)
        for target, weight in zip(targets.split(1, 1), weights.split(1, 1), strict=True):
            slope = slope - torch.where(columns == target, weight, 0.0)
    else:
        slope.scatter_add_(1, targets, -weights)
    z.copy_(slope.mul_(1 - squashed.square()) if cap else slope)
    return (losses * weights).sum(1)


def plain_product(x: Tensor, w: Tensor, out: Tensor) -> Tensor:
    """out (n, m) = x (n, k) @ w (k, m). Returns out."""
    return torch.mm(x, w, out=out)


def plain_outer(g: Tensor, x: Tensor, out: Tensor, add: bool) -> Tensor:
    """out (m, k) float32 = or += g (n, m)^T @ x (n, k). Returns out."""
    if not add:
        return out.copy_(g.T @ x)
    return out.addmm_(g.T, x) if g.dtype == out.dtype else out.add_(g.T @ x)  # summed over chunks in float32


def bfloat16_product(x: Tensor, w: Tensor, out: Tensor) -> Tensor:
    """As `plain_product` with factors rounded to bfloat16."""
    return out.copy_(x.bfloat16() @ w.bfloat16())


def bfloat16_outer(g: Tensor, x: Tensor, out: Tensor, add: bool) -> Tensor:
    """As `plain_outer` with factors rounded to bfloat16; summed over chunks in float32."""
    made = g.bfloat16().T @ x.bfloat16()
    return out.add_(made) if add else out.copy_(made)


class Arithmetic(NamedTuple):
    """The three steps of the loss that a machine may do in its own way."""

    softmax: Callable[[Tensor, Tensor, Tensor | None, float], Tensor]
    product: Callable[[Tensor, Tensor, Tensor], Tensor]
    outer: Callable[[Tensor, Tensor, Tensor, bool], Tensor]
    whole: Callable[..., tuple[Tensor, Gradients]] | None = None
    """All of training's loss and gradients at once, in place of the three steps: takes hidden, head, bias,
    targets, weights and cap of `weighted_loss`, and all of its `raised`; returns each token's weighted loss and the
    gradients by hidden, head, bias and the tensors of what is raised."""


PLAIN = Arithmetic(plain_softmax, plain_product, plain_outer)


def softcap(z: Tensor, cap: float) -> Tensor:
    """cap * tanh(z / cap); z itself when cap is 0."""
    return cap * torch.tanh(z / cap) if cap else z


def weighted_loss(
    hidden: Tensor,
    head: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    weights: Tensor,
    cap: float,
    arithmetic: Arithmetic,
    raised: Sequence[Raising] = (),
) -> Tensor:
    """Sum over tokens n and targets k of weights[n, k] * -ln p(targets[n, k] | n), a scalar.

    hidden (N, d), head (V, d), bias (V,) or None, targets int64 (N, K), weights float32 (N, K). `arithmetic` is
    `PLAIN` or faster functions that do the same; all of `raised` is added to the logits. Differentiable by hidden,
    head, bias and what raises.
    """
    return _WeightedLoss.apply(hidden, head, bias, targets, weights, cap, arithmetic, raised, *chain(*raised))


def token_losses(
    hidden: Tensor,
    head: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    cap: float,
    arithmetic: Arithmetic,
    raised: Sequence[Raising] = (),
) -> Tensor:
    """-ln p(targets[n] | n) of every token, (N,) float32; arguments as in `weighted_loss`, targets (N,)."""
    return _TokenLosses.apply(hidden, head, bias, targets, cap, arithmetic, raised, *chain(*raised))


class _WeightedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        weights: Tensor,
        cap: float,
        arithmetic: Arithmetic,
        raised: Sequence[Raising],
        *tensors: Tensor,  # of what raises: those that autograd sees
    ) -> Tensor:
        given = hidden, head, bias, targets, weights, cap
        if arithmetic.whole is not None and any(ctx.needs_input_grad):
            losses, gradients = arithmetic.whole(*given, *raised)
        else:
            losses, gradients = _gradients(*given, arithmetic, raised, ctx.needs_input_grad)
        ctx.save_for_backward(*gradients)
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        # With one pass a step the loss itself is differentiated; on a CPU the number costs less than the products by 1.
        same = grad.device.type == "cpu" and float(grad) == 1.0
        scaled = [part if part is None or same else part * grad for part in ctx.saved_tensors]
        return (*scaled[:3], None, None, None, None, None, *scaled[3:])


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        cap: float,
        arithmetic: Arithmetic,
        raised: Sequence[Raising],
        *tensors: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(hidden, head, bias, targets)
        ctx.cap, ctx.arithmetic, ctx.raised = cap, arithmetic, raised
        losses = hidden.new_empty(len(hidden), dtype=torch.float32)
        for part, z in logit_chunks(hidden, head, bias, arithmetic, raised):
            losses[part] = arithmetic.softmax(z, targets[part, None], None, cap)
        return losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        hidden, head, bias, targets = ctx.saved_tensors
        weights = grad.float()[:, None].contiguous()
        given = hidden, head, bias, targets[:, None], weights, ctx.cap, ctx.arithmetic, ctx.raised
        _, gradients = _gradients(*given, ctx.needs_input_grad)
        return (*gradients[:3], None, None, None, None, *gradients[3:])


def logit_chunks(
    hidden: Tensor, head: Tensor, bias: Tensor | None, arithmetic: Arithmetic, raised: Sequence[Raising]
) -> Iterator[tuple[slice, Tensor]]:
    """The uncapped logits (chunk, V) of each chunk of tokens; the tensor is only good until the next one."""
    size = max(CHUNK_TOKENS, (GPU_CHUNK_ELEMENTS if hidden.is_cuda else CHUNK_ELEMENTS) // len(head))
    buffer = hidden.new_empty(min(size, len(hidden)), len(head))
    columns = head.to(hidden.dtype).T.contiguous()  # (d, V): turned once, not for every chunk
    for start in range(0, len(hidden), size):
        part = slice(start, min(start + size, len(hidden)))
        z = arithmetic.product(hidden[part], columns, buffer[: part.stop - start])
        for form in raised:
            form.add(z, part)
        yield part, z if bias is None else z.add_(bias.to(z.dtype))


def _gradients(
    hidden: Tensor,
    head: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    weights: Tensor,
    cap: float,
    arithmetic: Arithmetic,
    raised: Sequence[Raising],
    wanted: tuple[bool, ...],
) -> tuple[Tensor, Gradients]:
    """Weighted loss of each token (N,), and the gradients of their sum by hidden, head, bias and what raises, where
    required."""
    losses = hidden.new_empty(len(hidden), dtype=torch.float32)
    d_hidden = torch.empty_like(hidden) if wanted[0] else None
    d_head = torch.zeros_like(head) if wanted[1] else None
    d_bias = torch.zeros_like(bias) if bias is not None and wanted[2] else None
    by_form = [form.gradients() for form in raised]
    rows = head.to(hidden.dtype)
    for part, z in logit_chunks(hidden, head, bias, arithmetic, raised):
        losses[part] = arithmetic.softmax(z, targets[part], weights[part], cap)
        for form, gradients in zip(raised, by_form, strict=True):
            form.differentiate(z, part, gradients)
        if d_hidden is not None:
            arithmetic.product(z, rows, d_hidden[part])
        if d_head is not None:
            arithmetic.outer(z, hidden[part], d_head, True)
        if d_bias is not None:
            d_bias += z.sum(0, dtype=d_bias.dtype)
    return losses, (d_hidden, d_head, d_bias, *chain(*by_form))
