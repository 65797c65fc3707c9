"""Making a model fast on this machine without changing what it computes.

On a CPU: attention, softmax and matrix products in C (`native`), and for training each block through torch.compile,
one block at a time: all blocks are alike, so one compilation serves every layer and every number of loop passes, and
switching the loop on costs nothing. Evaluation runs blocks as they are, since every new shape would compile again. On
a GPU: blocks and softmax through torch.compile. What a machine cannot do is left out and named in the report.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pgolf.model.attention import Attention, attend
from pgolf.model.attention_mask import View
from pgolf.model.gpt import GPT
from pgolf.model.kernels import attention, linear, loss, native
from pgolf.model.layers import Linear
from pgolf.model.loss import PLAIN, Arithmetic, plain_softmax
from pgolf.runtime import Runtime

TOLERANCE = 1e-4  # of a kernel against the plain path on random numbers of unit size; rounding stays below 1e-5
GRAPHS = 64  # compiled variants that may exist: shapes of a sequence schedule times kinds of layer


@dataclass(frozen=True)
class Compiled:
    kernels: bool
    """Attention and softmax run in C."""
    graph: bool
    """Blocks go through torch.compile in training; the compilation itself happens at the first step."""
    notes: tuple[str, ...]
    """One line for each thing this machine cannot do."""


def compile_model(model: GPT, runtime: Runtime, graph: bool = True) -> Compiled:
    """Use the fastest paths that this machine has; with `runtime.compile` false, none.

    graph: also torch.compile, which is worth its half minute in training only.
    """
    plain_model(model)
    if not runtime.compile:
        return Compiled(kernels=False, graph=False, notes=())
    notes: list[str] = []
    on_gpu = runtime.device.type == "cuda"
    kernels = not on_gpu and _use_kernels(model, notes)
    if not on_gpu and graph and native.compiler() is None:
        notes.append("no torch.compile: no C++ compiler found")
        graph = False
    if graph:
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
        model.compiled = [torch.compile(block, dynamic=False) for block in model.blocks]
        model.compiled_lanes = None if model.lanes is None else torch.compile(model.lanes.step, dynamic=False)
        if on_gpu:
            model.arithmetic = PLAIN._replace(softmax=torch.compile(plain_softmax, dynamic=False))
    return Compiled(kernels=kernels, graph=graph, notes=tuple(notes))


def plain_model(model: GPT) -> None:
    """Undo `compile_model`: every part in plain torch."""
    model.native, model.compiled, model.compiled_lanes, model.arithmetic = False, [], None, PLAIN
    for module in model.modules():
        if isinstance(module, Attention | Linear):
            module.native = False


def _use_kernels(model: GPT, notes: list[str]) -> bool:
    """Attention and softmax together or not at all; the products besides, where they gain."""
    config = model.config
    try:
        _check_attention(config.num_heads, config.num_kv_heads, config.dim // config.num_heads)
        _check_softmax(config.logit_softcap)
    except native.Unavailable as reason:
        notes.append(f"no kernels in C: {reason}")
        return False
    model.native, model.arithmetic = True, PLAIN._replace(softmax=loss.softmax)
    products = False
    try:
        _check_products()
        model.arithmetic = Arithmetic(loss.softmax, linear.product, linear.outer)
        products = True
    except native.Unavailable as reason:
        notes.append(f"matrix products by torch: {reason}")
    for module in model.modules():
        if isinstance(module, Attention) or (products and isinstance(module, Linear)):
            module.native = True
    return True


def _check_attention(heads: int, kv_heads: int, head_dim: int) -> None:
    attention.load(head_dim)
    numbers = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 40, n, head_dim, generator=numbers) for n in (heads, kv_heads, kv_heads))
    for queries in (40, 7):  # all, and the last few
        results = []
        for fast in (True, False):
            parts = [part.clone().requires_grad_() for part in (q[:, -queries:], k, v)]
            with torch.enable_grad():  # also where the model is only to be evaluated
                y = attend(parts[0], parts[1], parts[2], View(), native=fast)
                results.append((y, *torch.autograd.grad(y.square().sum(), parts)))
        _agree("attention", list(zip(*results, strict=True)))


def _check_softmax(cap: float) -> None:
    loss.load()
    numbers = torch.Generator().manual_seed(0)
    z = torch.randn(5, 37, generator=numbers)
    targets, weights = torch.arange(5)[:, None], torch.rand(5, 1, generator=numbers)
    found, wanted = z.clone(), z.clone()
    pairs = [(loss.softmax(found, targets, weights, cap), plain_softmax(wanted, targets, weights, cap))]
    _agree("softmax", [*pairs, (found, wanted)])


def _check_products() -> None:
    linear.load()
    numbers = torch.Generator().manual_seed(0)
    x, w, g = (torch.randn(shape, generator=numbers) for shape in ((70, 40), (56, 40), (70, 56)))
    pairs = [
        (linear.product(x, w, torch.empty(70, 56), turned=True), x @ w.T),
        (linear.product(g, w, torch.empty(70, 40)), g @ w),
        (linear.outer(g, x, torch.ones(56, 40), True), g.T @ x + 1),
    ]
    _agree("matrix product", pairs)


def _agree(what: str, pairs: list[tuple[Tensor, Tensor]]) -> None:
    error = max(float(F.l1_loss(a, b, reduction="none").max().detach()) for a, b in pairs)
    if not error < TOLERANCE:
        raise native.Unavailable(f"the {what} kernel is off by {error:.1e} here")
