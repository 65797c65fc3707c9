"""What a race of `fast_paths` computes: plain torch and each kernel doing the same at a model's shapes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from pgolf.model import attention_mask
from pgolf.model.attention import Attention, attend
from pgolf.model.attention_mask import View
from pgolf.model.block import Block
from pgolf.model.canon import Canon
from pgolf.model.copy_heads import CopyHeads, candidates
from pgolf.model.divergence import Divergence, plain_divergence
from pgolf.model.document_counts import DocumentCounts
from pgolf.model.forward_context import Step
from pgolf.model.gpt import GPT
from pgolf.model.kernels import bfloat16, divergence, linear, loss, residual, whole_loss
from pgolf.model.layers import Linear, rms_norm
from pgolf.model.loss import CHUNK_TOKENS, PLAIN, Arithmetic, plain_outer, plain_product, plain_softmax, weighted_loss
from pgolf.model.mlp import MLP
from pgolf.model.paths import COPIES, DIVERGENCE, HEADS, IN_C, LOSS, MLPS, NORMS
from pgolf.model.rotary import rotary_tables

TOKENS = 4096  # at most: beyond, the ratio of two times no longer changes
OPERATIONS = 0.5e9  # at most in one run: 0.025 s at 20 GFLOP/s, so that wide models keep to `fast_paths.RACE_SECONDS`

Tensors = Sequence[Tensor]


@dataclass(frozen=True)
class Shape:
    """One pass of a run: the shape at which the paths are timed."""

    rows: int
    length: int
    training: bool
    """Forward and backward; else forward alone."""
    threads: int


Pair = tuple[Callable[[], Tensors], Callable[[], Tensors]]


def _attention(model: GPT, shape: Shape) -> Pair:
    """Attention as torch does it and in C: every kind of layer's mask once, and the last few queries alone."""
    config, numbers = model.config, torch.Generator().manual_seed(0)
    (rows, length), head_dim = _attended(model, shape), config.dim // config.num_heads
    heads = config.num_heads, config.num_kv_heads, config.num_kv_heads, config.num_heads
    q, k, v, grad = (torch.randn(rows, length, count, head_dim, generator=numbers) for count in heads)
    tokens = torch.randint(config.vocab_size, (rows, length), generator=numbers)
    starts = attention_mask.document_starts(tokens, config.bos_id) if config.document_attention else None
    parts = [part.requires_grad_(shape.training) for part in (q, k, v)]

    def work(in_c: bool) -> Tensors:
        views = [attention_mask.view(starts, window, tokens, in_c) for window in {*config.layer_windows} or {0}]
        results = [attend(parts[0], parts[1], parts[2], view, native=in_c) for view in views]
        if shape.training:
            results += [part for y in results for part in torch.autograd.grad(y, parts, grad)]
        few = [part[:1, -min(40, length) :] for part in parts]
        return [*results, attend(few[0][:, -7:], few[1], few[2], View(), native=in_c)]

    return lambda: work(False), lambda: work(True)


def _attended(model: GPT, shape: Shape) -> tuple[int, int]:
    """Rows and tokens of each in a race of attention."""
    dim = model.config.dim
    length = min(shape.length, int((OPERATIONS / (14 * dim)) ** 0.5))  # 7 products of half of the pairs
    return max(1, min(int(OPERATIONS / (7 * dim * length**2)), shape.rows, TOKENS // length)), length


def _softmax(model: GPT, shape: Shape) -> Pair:
    numbers, rows = torch.Generator().manual_seed(0), _tokens(shape, CHUNK_TOKENS, 40 * model.config.vocab_size)
    z = torch.randn(rows, model.config.vocab_size, generator=numbers)
    targets = torch.randint(model.config.vocab_size, (rows, 1), generator=numbers)
    weights = torch.rand(rows, 1, generator=numbers) if shape.training else None
    buffer = z.clone()

    def work(softmax: Callable[..., Tensor]) -> Tensors:
        return softmax(buffer.copy_(z), targets, weights, model.config.logit_softcap), buffer.clone()

    if weights is None:  # the buffer is scratch then
        return lambda: work(plain_softmax)[:1], lambda: work(loss.softmax)[:1]
    return lambda: work(plain_softmax), lambda: work(loss.softmax)


def layer_products(
    model: GPT,
    shape: Shape,
    fast: Callable[..., Tensor] = linear.fast_linear,
    plain: Callable[..., Tensor] = F.linear,
) -> Pair:
    """One block's matrices, forward and in training backward."""
    numbers = torch.Generator().manual_seed(0)
    sizes = [module.weight.shape for module in model.blocks[0].modules() if isinstance(module, Linear)]
    count = _tokens(shape, TOKENS, 6 * sum(size.numel() for size in sizes))
    cases = []
    for outputs, inputs in sizes:
        x = torch.randn(count, inputs, generator=numbers).requires_grad_(shape.training)
        w = (torch.randn(outputs, inputs, generator=numbers) / inputs**0.5).requires_grad_(shape.training)
        cases.append((x, w, torch.randn(len(x), outputs, generator=numbers)))

    def work(product: Callable[..., Tensor]) -> Tensors:
        results: list[Tensor] = []
        for x, w, grad in cases:
            y = product(x, w)
            results += [y, *torch.autograd.grad(y, (x, w), grad)] if shape.training else [y]
        return results

    return lambda: work(plain), lambda: work(fast)


def tiled_products(model: GPT, shape: Shape) -> Pair:
    """One block's matrices and a loss, as the model computes them now or in bfloat16 in C; training only."""
    half, own = replace(shape, rows=max(1, shape.rows // 2)), model.arithmetic
    module = next(part for part in model.modules() if isinstance(part, Linear))
    layers = layer_products(model, half, bfloat16.linear, module.times)
    width, pieces = model.config.embed_dim or model.config.dim, model.config.vocab_size
    numbers, count = torch.Generator().manual_seed(0), _tokens(half, CHUNK_TOKENS, 12 * width * pieces)
    hidden, head = torch.randn(count, width, generator=numbers), torch.randn(pieces, width, generator=numbers)
    targets, weights = torch.randint(pieces, (count, 1), generator=numbers), torch.full((count, 1), 1 / count)
    inputs, tiled = (hidden.requires_grad_(), head.requires_grad_()), PLAIN._replace(whole=bfloat16.weighted_loss)

    def work(layer: Callable[[], Tensors], arithmetic: Arithmetic) -> Tensors:
        y = weighted_loss(hidden, head, None, targets, weights, model.config.logit_softcap, arithmetic)
        return [*layer(), y, *torch.autograd.grad(y, inputs)]

    return lambda: work(layers[0], own), lambda: work(layers[1], tiled)


def _head_products(model: GPT, shape: Shape) -> Pair:
    """A chunk of logits, and in training both its gradients."""
    width, pieces = model.config.embed_dim or model.config.dim, model.config.vocab_size
    numbers, rows = torch.Generator().manual_seed(0), _tokens(shape, CHUNK_TOKENS, 6 * width * pieces)
    x, head = torch.randn(rows, width, generator=numbers), torch.randn(pieces, width, generator=numbers)
    columns, z = head.T.contiguous(), torch.randn(rows, pieces, generator=numbers)
    logits, dx, dw = torch.empty(rows, pieces), torch.empty(rows, width), torch.empty(pieces, width)

    def work(product: Callable[..., Tensor], outer: Callable[..., Tensor]) -> Tensors:
        found = [product(x, columns, logits).clone()]
        if shape.training:
            found += [product(z, head, dx).clone(), outer(z, x, dw.zero_(), True).clone()]
        return found

    return lambda: work(plain_product, plain_outer), lambda: work(linear.product, linear.outer)


def _half_square(z: Tensor, targets: Tensor, weights: Tensor | None, cap: float) -> Tensor:
    """In place of a softmax: half the sum of a row's squares, whose gradient by z is z."""
    return torch.linalg.vector_norm(z, dim=1).square() / 2


_RAISED_ALONE = Arithmetic(_half_square, lambda x, w, out: out.zero_(), plain_outer)
"""A loss that takes hardly longer than its raised logits."""


def _copies(model: GPT, shape: Shape) -> Pair:
    """Search, look-ups, what is raised on its way through the loss, and in training their gradients."""
    config, numbers, heads = model.config, torch.Generator().manual_seed(0), model.copy_heads
    assert heads is not None
    count = _tokens(shape, TOKENS, 6 * config.dim * heads.gate.shape[0])
    tokens = torch.randint(config.vocab_size, (max(1, count // shape.length), shape.length), generator=numbers) // 2
    hidden, grad = torch.randn(2, *tokens.shape, config.dim, generator=numbers)
    table, made = model.tok_emb.weight, CopyHeads(config)
    counts = DocumentCounts(config) if config.document_counts else None
    weights = [*made.parameters(), *([] if counts is None else counts.parameters())]
    with torch.no_grad():
        for part in weights:
            part.normal_(generator=numbers)
    inputs = [hidden.requires_grad_(shape.training), table, *weights]
    state, head = torch.zeros(tokens.numel(), 1), torch.zeros(config.vocab_size, 1)
    target = torch.zeros(tokens.numel(), 1, dtype=torch.int64)

    def work(native: bool) -> Tensors:
        made.native = native
        found = candidates(tokens, config, native=native)
        results, raised = [], []
        if counts is not None:
            counts.native = native
            raised.append(counts(hidden, tokens, table))
        if config.copy_logits:
            raised.append(made.raised(hidden, found, table))
        else:
            results.append(made(hidden, found, table))
        if made.on_input is not None:
            results.append(made.at_input(found, table, table.dtype))
        if raised:
            results.append(weighted_loss(state, head, None, target, target.float(), 0.0, _RAISED_ALONE, raised))
        if not shape.training:
            return results
        wanted = [grad if result.ndim else None for result in results]
        return [*results, *torch.autograd.grad(results, inputs, wanted, allow_unused=True, materialize_grads=True)]

    return lambda: work(False), lambda: work(True)


def _norms(model: GPT, shape: Shape) -> Pair:
    """One start of a half block and one norm alone, with their gradients; training only."""
    numbers, block, dim = torch.Generator().manual_seed(0), GPT(model.config).blocks[0], model.config.dim
    assert isinstance(block, Block)
    length = min(shape.length, TOKENS)
    rows = max(1, min(TOKENS // length, shape.rows))
    x, other, *grads = torch.randn(5, rows, length, dim, generator=numbers)
    inside = (torch.rand(rows, length, 1, generator=numbers) > 0.01).float()
    canon, mix = block.attn_canon, block.resid_mix
    inputs = [x.requires_grad_(), other.requires_grad_(), *([] if mix is None else [mix])]
    inputs += [] if canon is None else [canon.taps]

    def work(native: bool) -> Tensors:
        step = Step(other, x, x, inside)
        if native:
            results = *residual.enter(x, other, None, mix, *_taps(canon, inside), block.norm_factor), residual.norm(x)
        else:
            mixed = block.mixed(x, step)
            h = block.normed(mixed)
            results = mixed, h if canon is None else canon(h, inside), rms_norm(x)
        return [*results, *torch.autograd.grad(results, inputs, grads)]

    return lambda: work(False), lambda: work(True)


def _divergence(model: GPT, shape: Shape) -> Pair:
    numbers, rows = torch.Generator().manual_seed(0), _tokens(shape, CHUNK_TOKENS, 80 * model.config.vocab_size)
    z, wanted = torch.randn(2, rows, model.config.vocab_size, generator=numbers)
    weights = torch.rand(rows, 1, generator=numbers)
    buffer = z.clone()

    def work(of: Divergence) -> Tensors:
        alone = of(z, wanted, None, 0.0)
        return alone, of(buffer.copy_(z), wanted, weights, model.config.logit_softcap), buffer.clone()

    return lambda: work(plain_divergence), lambda: work(divergence.divergence)


def _mlp(model: GPT, shape: Shape) -> Pair:
    """One MLP that adds to the stream, with its gradients; training only."""
    numbers, made, dim = torch.Generator().manual_seed(0), MLP(model.config), model.config.dim
    count = _tokens(shape, TOKENS, 7 * made.fc.weight.numel() * 2)
    x, grad = torch.randn(2, count, dim, generator=numbers)
    scale = torch.rand(dim, generator=numbers)
    inputs = [x.requires_grad_(), scale.requires_grad_(), *made.parameters()]

    def work(native: bool) -> Tensors:
        made.native = native
        y = made(x, scale, x)
        return [y, *torch.autograd.grad(y, inputs, grad)]

    return lambda: work(False), lambda: work(True)


def _heads(model: GPT, shape: Shape) -> Pair:
    """The last layer's whole attention with its gradients, torch around the kernel or it alone; training only."""
    made, attend = _one_attention(model, shape)

    def work(fused: bool) -> Tensors:
        made.fused = fused
        return attend()

    return lambda: work(False), lambda: work(True)


def tiled_attention(model: GPT, shape: Shape, fused: bool) -> Pair:
    """The same with products in bfloat16: the kernel in float32, `fused` with what surrounds it, and in bfloat16."""
    made, attend = _one_attention(model, shape)
    for module in made.modules():
        if isinstance(module, Linear):
            module.products = "tiles"

    def work(tiled: bool) -> Tensors:
        made.tiled, made.fused = tiled, fused and not tiled
        y, *gradients = attend()
        return y, torch.cat([part.flatten() for part in gradients])  # that by the gain is a sum of rounding errors

    return lambda: work(False), lambda: work(True)


def _one_attention(model: GPT, shape: Shape) -> tuple[Attention, Callable[[], Tensors]]:
    """The last layer's attention by the kernel, and a function that returns its output and gradients."""
    config, numbers = model.config, torch.Generator().manual_seed(0)
    made = Attention(config, config.num_layers - 1)
    made.native = True
    rows, length = _attended(model, shape)
    x, grad = torch.randn(2, rows, length, config.dim, generator=numbers)
    tokens = torch.randint(config.vocab_size, (rows, length), generator=numbers)
    starts = attention_mask.document_starts(tokens, config.bos_id) if config.document_attention else None
    view = attention_mask.view(starts, max(config.layer_windows, default=0), tokens, native=True)
    step = Step(x.detach(), *rotary_tables(length, config.rope_dims or made.head_dim, config.rope_base, x.device), None)
    scale = torch.rand(config.dim, generator=numbers)
    inputs = [x.requires_grad_(), scale.requires_grad_(), *made.parameters()]

    def work() -> Tensors:
        y = made(x, step, view, None, 0, scale)
        return [y, *torch.autograd.grad(y, inputs, grad)]

    return made, work


def _whole_loss(model: GPT, shape: Shape) -> Pair:
    """The loss and its gradients, with what document counts raise, as the model computes them now or in one call;
    training only."""
    config, numbers = model.config, torch.Generator().manual_seed(0)
    width, pieces = config.embed_dim or config.dim, config.vocab_size
    count = _tokens(shape, TOKENS, 2 * width * pieces)  # three times as many: packing the head must not decide
    length = min(count, shape.length)
    tokens = torch.randint(pieces, (count // length, length), generator=numbers) // 2
    hidden, head = torch.randn(*tokens.shape, width, generator=numbers), torch.randn(pieces, width, generator=numbers)
    targets, weights = tokens.view(-1, 1), torch.full((tokens.numel(), 1), 1 / count)
    counts = None
    if model.counts is not None and not config.embed_dim:
        counts = DocumentCounts(config)
        counts.native = model.counts.native
    inputs = hidden.requires_grad_(), head.requires_grad_(), *([] if counts is None else counts.parameters())
    apart = model.arithmetic._replace(whole=None)
    whole = apart._replace(whole=whole_loss.weighted_loss)

    def work(arithmetic: Arithmetic) -> Tensors:
        raised = [] if counts is None else [counts(hidden, tokens, head)]
        flat = hidden.flatten(0, 1)
        y = weighted_loss(flat, head, None, targets, weights, config.logit_softcap, arithmetic, raised)
        return [y, *torch.autograd.grad(y, inputs)]

    return lambda: work(apart), lambda: work(whole)


def _taps(canon: Canon | None, inside: Tensor) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if canon is None else (canon.taps, inside)


PAIRS: dict[str, Callable[[GPT, Shape], Pair]] = dict(
    zip(
        (*IN_C, COPIES, NORMS, DIVERGENCE, MLPS, HEADS, LOSS),
        (_attention, _softmax, layer_products, _head_products, _copies, _norms, _divergence, _mlp, _heads, _whole_loss),
        strict=True,
    )
)
"""By kernel, plain torch and the kernel computing the same at a model's shapes."""


def _tokens(shape: Shape, most: int, operations: int) -> int:
    """Tokens of one run of a race at so many operations a token."""
    return max(1, min(most, shape.rows * shape.length, int(OPERATIONS / operations)))
