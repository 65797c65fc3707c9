"""The execution paths of the parts of a model and the switches between them. `fast_paths` chooses by measuring.

On a CPU: kernels in C for attention, softmax, MLP and matrix products, and bfloat16 products in training. On a GPU,
and on a CPU with a compiler: torch.compile, one block at a time. All blocks are alike, so one compilation serves every
layer and every number of loop passes.
"""

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from pgolf.model.attention import Attention
from pgolf.model.block import Block
from pgolf.model.divergence import plain_divergence
from pgolf.model.gpt import GPT, Parts
from pgolf.model.kernels import (
    attention,
    bfloat16,
    bfloat16_attention,
    copies,
    divergence,
    heads,
    linear,
    loss,
    mlp,
    native,
    residual,
    whole_loss,
)
from pgolf.model.lanes import advance
from pgolf.model.layers import Linear
from pgolf.model.loss import (
    PLAIN,
    Arithmetic,
    bfloat16_outer,
    bfloat16_product,
    plain_outer,
    plain_product,
    plain_softmax,
)
from pgolf.model.mlp import MLP
from pgolf.runtime import Runtime

TOLERANCE = 1e-4  # of a kernel against plain torch, relative to the largest value; rounding stays below 1e-5
IN_C = ("attention in C", "softmax in C", "layer products in C", "head products in C")
COPIES = "copies in C"  # of a model with copy heads
DIVERGENCE = "divergence in C"  # of the quantizer
NORMS = "norms in C"  # of the stream, where blocks mix the embedding in, in training
HEADS = "heads in C"  # beside attention in C: what happens to its heads before and after, in training
TILED = "bfloat16 attention in C"  # beside bfloat16 in C, in place of heads in C, in training
MLPS = "MLP in C"  # in training, in float32
LOSS = "loss in C"  # softmax and products in one call, in place of both, in training, in float32
GRAPHS = 64  # compiled variants that may exist: shapes of a sequence schedule times kinds of layer

LOADERS: dict[str, Callable[[GPT, Path | None], object]] = {
    "attention in C": lambda model, cache: attention.load(model.config.dim // model.config.num_heads, cache),
    "softmax in C": lambda model, cache: loss.load(cache),
    "layer products in C": lambda model, cache: linear.load(cache),
    "head products in C": lambda model, cache: linear.load(cache),
    COPIES: lambda model, cache: copies.load(cache),
    NORMS: lambda model, cache: residual.load(model.config.dim, cache),
    DIVERGENCE: lambda model, cache: divergence.load(cache),
    HEADS: lambda model, cache: heads.load(
        width := model.config.dim // model.config.num_heads, model.config.rope_dims or width, cache
    ),
    MLPS: lambda model, cache: mlp.load(cache),
    LOSS: lambda model, cache: whole_loss.load(cache),
    "bfloat16 products": lambda model, cache: None,
    "bfloat16 in C": lambda model, cache: bfloat16.load(cache),
    TILED: lambda model, cache: bfloat16_attention.load(cache),
}
"""Loaders of the fast paths: model and folder of compiled kernels in. They raise native.Unavailable."""


def use_paths(model: GPT, names: Iterable[str]) -> None:
    """Switch exactly these paths on."""
    plain_model(model)
    chosen = set(names)
    model.native, model.native_norms = "attention in C" in chosen, NORMS in chosen
    rounded, tiles = "bfloat16 products" in chosen, "bfloat16 in C" in chosen
    layers = "tiles" if tiles else "bfloat16" if rounded else "C" if "layer products in C" in chosen else "torch"
    for module in model.modules():
        if isinstance(module, Attention):
            module.native = model.native
            module.tiled = model.native and tiles and TILED in chosen
            module.fused = model.native and HEADS in chosen and not module.tiled and (tiles or not rounded)
        elif isinstance(module, Linear):
            module.products = layers
        elif isinstance(module, Block):
            module.native = model.native_norms
        elif isinstance(module, MLP):
            module.native = MLPS in chosen and not (tiles or rounded)
    _use_copies(model, COPIES in chosen)
    model.divergence = divergence.divergence if DIVERGENCE in chosen else plain_divergence
    softmax = loss.softmax if "softmax in C" in chosen else plain_softmax
    if tiles:
        model.arithmetic = PLAIN._replace(softmax=softmax, whole=bfloat16.weighted_loss)
    elif rounded:
        model.arithmetic = Arithmetic(softmax, bfloat16_product, bfloat16_outer)
    else:
        in_c = "head products in C" in chosen
        products = (linear.product, linear.outer) if in_c else (plain_product, plain_outer)
        model.arithmetic = Arithmetic(softmax, *products, whole_loss.weighted_loss if LOSS in chosen else None)


def plain_model(model: GPT) -> None:
    """Every part in plain torch."""
    model.native = model.native_norms = False
    model.compiled, model.scoring, model.arithmetic = None, None, PLAIN
    model.divergence = plain_divergence
    _use_copies(model, False)
    for module in model.modules():
        if isinstance(module, Attention):
            module.native = module.fused = module.tiled = False
        elif isinstance(module, Linear):
            module.products = "torch"
        elif isinstance(module, Block | MLP):
            module.native = False


def _use_copies(model: GPT, native: bool) -> None:
    for part in (model.copy_heads, model.counts):
        if part is not None:
            part.native = native


def use_graph(model: GPT, runtime: Runtime) -> None:
    """Send blocks and lanes through torch.compile in training; on a GPU also embedding, end and softmax.

    Nothing compiles before the first step. On a CPU the three others would cost seconds each and gain nothing.
    """
    model.compiled = _compiled(model, runtime.device.type == "cuda")
    if runtime.device.type == "cuda":
        model.arithmetic = PLAIN._replace(softmax=torch.compile(plain_softmax, dynamic=False))


def scoring_graph(model: GPT, runtime: Runtime, shape: tuple[int, ...]) -> None:
    """Send a GPU's evaluation batches of exactly this shape (rows, tokens, scored positions at their ends) through
    torch.compile; all others stay plain, so that none compiles anything. `without_graph` undoes it."""
    if runtime.compile and runtime.device.type == "cuda":
        model.compiled, model.scored_shape = _compiled(model, True), shape


def _compiled(model: GPT, ends: bool) -> Parts:
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
    blocks = [torch.compile(block, dynamic=False) for block in model.blocks]
    made = Parts(model.embedded, blocks, torch.compile(advance, dynamic=False), model.closed)
    if not ends:
        return made
    embedded, closed = (torch.compile(part, dynamic=False) for part in (model.embedded, model.closed))
    return made._replace(embedded=embedded, closed=closed)


def without_graph(model: GPT) -> None:
    """Undo `use_graph` and `scoring_graph`."""
    model.compiled = model.scored_shape = None
    if model.arithmetic.softmax not in (plain_softmax, loss.softmax):
        model.arithmetic = PLAIN


def measured(model: GPT, work: Callable[[], Tensor]) -> list[str]:
    """Switch on every kernel in C with which `work` takes less time and gives the same result; return their names.

    work: a pass through the model at the run's own shape, of the same random tokens each time. One kernel after the
    other is tried in the whole pass: less exact than `fast_paths.choose_paths`, in a few lines.
    """

    def timed(names: list[str]) -> tuple[Tensor, float]:
        use_paths(model, names)
        times, result = [], work()
        for _ in range(2):
            begun = time.perf_counter()
            work()
            times.append(time.perf_counter() - begun)
        return result, min(times)

    used: list[str] = []
    expected, fastest = timed(used)
    for name in IN_C:
        try:
            LOADERS[name](model, None)
        except native.Unavailable:
            continue
        result, seconds = timed([*used, name])
        if seconds < fastest and torch.allclose(result, expected, rtol=TOLERANCE, atol=TOLERANCE):
            used, fastest = [*used, name], seconds
    use_paths(model, used)
    return used
