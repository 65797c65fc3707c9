"""Choose how each part of the model is computed on this machine, by measuring or by a fixed rule.

Training calls `choose_paths`: it checks each fast path of `paths` against plain torch, times both in turn at the run's
own shapes, and uses the faster one; the times are kept in the cache folder, so a second start measures nothing.
Everything after training calls `paths_by_rule`: kernels round differently and the winner of a race can change, so with
`choose_paths` a model quantized or scored twice could give different bytes. torch.compile takes seconds to minutes, so
`Compilation.pays` compares its expected saving in the run's budget with its cost.
"""

import contextlib
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import pgolf.model.kernels.shapes  # noqa: F401 - registers output shapes for torch.compile
from pgolf.model import attention_mask
from pgolf.model.attention import Attention, attend
from pgolf.model.attention_mask import View
from pgolf.model.block import Block
from pgolf.model.canon import Canon
from pgolf.model.copy_heads import CopyHeads, candidates
from pgolf.model.divergence import Divergence, plain_divergence
from pgolf.model.document_counts import DocumentCounts
from pgolf.model.forward_context import Step
from pgolf.model.gpt import GPT, Parts
from pgolf.model.kernels import (
    amx,
    amx_attention,
    cache,
    copies,
    divergence,
    heads,
    linear,
    loss,
    mlp,
    native,
    residual,
)
from pgolf.model.kernels import scoring as scoring_kernel
from pgolf.model.layers import Linear, bfloat16_linear, rms_norm
from pgolf.model.loss import CHUNK_TOKENS, Arithmetic, plain_outer, plain_product, plain_softmax, weighted_loss
from pgolf.model.mlp import MLP
from pgolf.model.paths import COPIES, DIVERGENCE, HEADS, IN_C, LOADERS, MLPS, NORMS, TOLERANCE, plain_model, use_paths
from pgolf.model.rotary import rotary_tables
from pgolf.runtime import Runtime

BFLOAT16_TOLERANCE = 0.05  # 8 bits of mantissa
RACE_SECONDS = 0.11  # for each of at most ten races, so that all of them take less than 2 s
RACE_ROUNDS = 2, 9  # at least: what disturbs a single run must not decide; and at most
RACE_TOKENS = 4096  # at most in a race: beyond, the ratio of two times no longer changes
RACE_OPERATIONS = 0.6e9  # at most in one run of a race: 0.03 s at 20 GFLOP/s, so that wide models keep to RACE_SECONDS
BY_RULE = ("attention in C", "softmax in C", COPIES, NORMS, DIVERGENCE)
"""The kernels that won by 1.3 to 10 times at every instruction set measured, which for the divergence is AVX2 alone;
products in C won at some only (benchmarks/results/training_speed.md and quantization.md)."""
COMPILE_SECONDS, COMPILE_SPEEDUP = 45.0, 1.25
"""Estimated cost and gain of torch.compile on a CPU, not measured; used until this machine has measured
its own (`remember_compilation`)."""

Tensors = Sequence[Tensor]


@dataclass(frozen=True)
class Shape:
    """One pass of a run: the shape at which the paths are timed."""

    rows: int
    length: int
    training: bool
    """Forward and backward; else forward alone."""
    threads: int


class Timing(NamedTuple):
    plain: float  # seconds
    fast: float

    @property
    def used(self) -> bool:
        return self.fast < self.plain


@dataclass(frozen=True)
class Choice:
    """The chosen paths and the measurements behind the choice."""

    timings: dict[str, Timing] = field(default_factory=dict)
    """By path; plain torch (for bfloat16: the faster of the float32 ways) against the fast path."""
    notes: tuple[str, ...] = ()
    """One line for each path that this machine cannot build or that computes something else here."""

    def uses(self, name: str) -> bool:
        return name in self.timings and self.timings[name].used

    def describe(self) -> dict[str, Any]:
        """For a manifest: milliseconds of both ways, and which runs."""
        return {
            name: {"plain_ms": round(1e3 * t.plain, 3), "fast_ms": round(1e3 * t.fast, 3), "used": t.used}
            for name, t in self.timings.items()
        } | ({"unavailable": list(self.notes)} if self.notes else {})

    def line(self) -> str:
        """For the screen: every path with its speed relative to the plain one."""
        parts = [
            f"{name} {'on' if t.used else 'off'} ({t.plain / max(t.fast, 1e-9):.1f} times plain torch's speed)"
            for name, t in self.timings.items()
        ]
        return "fast paths: " + ", ".join([*parts, *self.notes])


def choose_paths(model: GPT, runtime: Runtime, shape: Shape, matmul: str = "float32") -> Choice:
    """Use the faster of every fast path and plain torch, in the model's forward and loss; torch.compile not included.

    matmul: `float32`, `bfloat16` or `auto` (the faster), for the matrix products of training.
    Nothing is used on a GPU or with `runtime.compile` false.
    """
    plain_model(model)
    if not runtime.compile or runtime.device.type == "cuda":
        return Choice()
    threads = torch.get_num_threads()
    torch.set_num_threads(shape.threads)
    try:
        choice = _measured(model, runtime, shape, matmul)
    finally:
        torch.set_num_threads(threads)
    use_paths(model, [name for name, timing in choice.timings.items() if timing.used or name == f"{matmul} products"])
    return choice


def paths_by_rule(model: GPT, runtime: Runtime, shape: Shape, scoring: bool = False) -> None:
    """Use the kernels of `BY_RULE` that this machine can build and that agree with plain torch.

    scoring: with them, the whole forward pass without gradients in C (`kernels.scoring`), in which no hook on a module
    is called. Nothing is timed: on one machine, the same model always takes the same paths. Nothing is used on a GPU or
    with `runtime.compile` false.
    """
    plain_model(model)
    if not runtime.compile or runtime.device.type == "cuda":
        return
    used = []
    left_out = _left_out(model, shape)
    for name in filter(lambda name: name not in left_out, BY_RULE):
        with contextlib.suppress(native.Unavailable):
            LOADERS[name](model, runtime.cache)
            _check(*PAIRS[name](model, shape), TOLERANCE, shape.training)
            used.append(name)
    use_paths(model, used)
    if scoring and model.native:
        with contextlib.suppress(native.Unavailable):
            model.scoring = _scoring_parts(model, runtime, shape)


@dataclass(frozen=True)
class Compilation:
    """Cost and gain of torch.compile for one model and shape, measured earlier on this machine or expected."""

    seconds: float = COMPILE_SECONDS
    speedup: float = COMPILE_SPEEDUP
    measured: bool = False

    def pays(self, budget: float) -> bool:
        """True if it saves more of a training budget in seconds than it costs."""
        return budget * (1 - 1 / max(self.speedup, 1.0)) > self.seconds


def known_compilation(model: GPT, runtime: Runtime, shape: Shape) -> Compilation:
    """Cost and gain of the last compilation of this model on this machine; an estimate if there was none."""
    kept = _recall(_key("compile", model, runtime, shape), runtime)
    seconds, speedup = kept.get("seconds"), kept.get("speedup")
    if isinstance(seconds, float) and isinstance(speedup, float):
        return Compilation(seconds, speedup, measured=True)
    return Compilation()


def remember_compilation(model: GPT, runtime: Runtime, shape: Shape, seconds: float, speedup: float) -> None:
    _remember(_key("compile", model, runtime, shape), runtime, {"seconds": seconds, "speedup": speedup})


def _measured(model: GPT, runtime: Runtime, shape: Shape, matmul: str) -> Choice:
    """The kept times of this model and shape, or new ones."""
    key = _key("paths", model, runtime, shape, matmul)
    kept = _recall(key, runtime)
    timings, notes = {}, []
    races = _races(model, shape, matmul, runtime)
    for name, race in races.items():
        try:
            if isinstance(kept.get(name), list) and len(kept[name]) == 2:
                timings[name] = Timing(*map(float, kept[name]))
                LOADERS[name](model, runtime.cache)
            else:
                timings[name] = race(timings)
        except native.Unavailable as reason:
            timings.pop(name, None)
            notes.append(f"no {name}: {reason}")
    if timings.keys() - kept.keys():
        _remember(key, runtime, {name: list(timing) for name, timing in timings.items()})
    return Choice(timings, tuple(notes))


def _races(model: GPT, shape: Shape, matmul: str, runtime: Runtime) -> dict[str, Callable[[dict[str, Timing]], Timing]]:
    """By path, the function that times it against plain torch, given the times of the paths before it."""

    def race(name: str, before: dict[str, Timing]) -> Timing:
        if name == HEADS and not ("attention in C" in before and before["attention in C"].used):
            raise native.Unavailable("attention is torch's")
        LOADERS[name](model, runtime.cache)
        plain, fast = PAIRS[name](model, shape)
        return _race(plain, fast, TOLERANCE, shape)

    def race_bfloat16(before: dict[str, Timing]) -> Timing:
        """Against the faster of torch and C in float32."""
        plain, fast = _layer_products(model, shape, bfloat16_linear)
        found = _race(plain, fast, BFLOAT16_TOLERANCE, shape)
        layers = before.get("layer products in C")
        share = 1.0 if layers is None else min(1.0, layers.fast / layers.plain)
        return found._replace(plain=found.plain * share)

    def race_tiles(before: dict[str, Timing]) -> Timing:
        """Against torch in bfloat16, or with `auto` the faster of that and float32."""
        LOADERS["bfloat16 in C"](model, runtime.cache)
        plain, fast = _layer_products(model, shape, amx.linear, bfloat16_linear)
        found = _race(plain, fast, BFLOAT16_TOLERANCE, shape)
        float32, bfloat16 = before["bfloat16 products"]
        return found._replace(plain=found.plain * (min(1.0, float32 / bfloat16) if matmul == "auto" else 1.0))

    left_out = {*_left_out(model, shape), DIVERGENCE}  # a step of training computes none
    made: dict[str, Callable[[dict[str, Timing]], Timing]] = {
        name: functools.partial(race, name) for name in PAIRS if name not in left_out
    }
    if shape.training and matmul != "float32":
        made |= {"bfloat16 products": race_bfloat16, "bfloat16 in C": race_tiles}
    return made


def _left_out(model: GPT, shape: Shape) -> set[str]:
    """Kernels of `PAIRS` for parts that this model does not have."""
    left_out = set() if model.copy_heads is not None else {COPIES}
    if not shape.training or model.blocks[0].resid_mix is None or model.lanes is not None:
        left_out.add(NORMS)
    if not shape.training:
        left_out |= {MLPS, HEADS}
    if model.config.value_x0 or model.config.key_offset:
        left_out.add(HEADS)
    return left_out


def _check(plain: Callable[[], Tensors], fast: Callable[[], Tensors], tolerance: float, learns: bool) -> None:
    """Raises native.Unavailable where the two differ."""
    with torch.set_grad_enabled(learns):
        for mine, theirs in zip(fast(), plain(), strict=True):
            error = float((mine - theirs).detach().abs().max() / theirs.detach().abs().max().clamp(min=1.0))
            if not error < tolerance:
                raise native.Unavailable(f"its results are off by {error:.1e} here")


def _race(plain: Callable[[], Tensors], fast: Callable[[], Tensors], tolerance: float, shape: Shape) -> Timing:
    """Check one against the other and take the fastest of each over interleaved runs.

    Raises native.Unavailable where they differ.
    """
    # On one thread other processes cannot disturb processor time; several threads do not add up to a time.
    clock = time.process_time if shape.threads == 1 else time.perf_counter
    times: tuple[list[float], list[float]] = [], []
    _check(plain, fast, tolerance, shape.training)  # not timed: a process's first call costs torch up to a second
    begun = clock()  # the budget by the same clock: on a busy machine, too, there are several rounds
    with torch.set_grad_enabled(shape.training):
        while len(times[0]) < RACE_ROUNDS[1]:
            for work, kept in zip((plain, fast), times, strict=True):
                start = clock()
                work()
                kept.append(clock() - start)
            spent = clock() - begun
            another = spent + spent / len(times[0])
            if len(times[0]) >= RACE_ROUNDS[0] and another > RACE_SECONDS:
                break
    return Timing(*map(min, times))  # other load on the machine only adds time


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
    length = min(shape.length, int((RACE_OPERATIONS / (14 * dim)) ** 0.5))  # 7 products of half of the pairs
    return max(1, min(int(RACE_OPERATIONS / (7 * dim * length**2)), shape.rows, RACE_TOKENS // length)), length


def _scoring_parts(model: GPT, runtime: Runtime, shape: Shape) -> Parts | None:
    """The forward pass in C. Raises native.Unavailable where it cannot be built or its results are off."""
    parts = scoring_kernel.parts(model, runtime.cache)
    tokens = torch.randint(model.config.vocab_size, (2, shape.length), generator=torch.Generator().manual_seed(0))

    def work(parts: Parts | None) -> Tensors:
        model.scoring = parts
        try:
            return [model.hidden(tokens, 1 + shape.length // 4)]
        finally:
            model.scoring = None

    _check(lambda: work(None), lambda: work(parts), TOLERANCE, learns=False)
    return parts


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


def _layer_products(
    model: GPT,
    shape: Shape,
    fast: Callable[..., Tensor] = linear.fast_linear,
    plain: Callable[..., Tensor] = F.linear,
) -> Pair:
    """One block's matrices, forward and in training backward."""
    numbers = torch.Generator().manual_seed(0)
    sizes = [module.weight.shape for module in model.blocks[0].modules() if isinstance(module, Linear)]
    count = _tokens(shape, RACE_TOKENS, 6 * sum(size.numel() for size in sizes))
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
    count = _tokens(shape, RACE_TOKENS, 6 * config.dim * heads.gate.shape[0])
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
    length = min(shape.length, RACE_TOKENS)
    rows = max(1, min(RACE_TOKENS // length, shape.rows))
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
    count = _tokens(shape, RACE_TOKENS, 7 * made.fc.weight.numel() * 2)
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

    def work(fused: bool) -> Tensors:
        made.fused = fused
        y = made(x, step, view, None, 0, scale)
        return [y, *torch.autograd.grad(y, inputs, grad)]

    return lambda: work(False), lambda: work(True)


def _taps(canon: Canon | None, inside: Tensor) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if canon is None else (canon.taps, inside)


PAIRS: dict[str, Callable[[GPT, Shape], Pair]] = dict(
    zip(
        (*IN_C, COPIES, NORMS, DIVERGENCE, MLPS, HEADS),
        (_attention, _softmax, _layer_products, _head_products, _copies, _norms, _divergence, _mlp, _heads),
        strict=True,
    )
)
"""By kernel, plain torch and the kernel computing the same at a model's shapes."""


def _tokens(shape: Shape, most: int, operations: int) -> int:
    """Tokens of one run of a race at so many operations a token."""
    return max(1, min(most, shape.rows * shape.length, int(RACE_OPERATIONS / operations)))


def _key(kind: str, model: GPT, runtime: Runtime, shape: Shape, matmul: str = "") -> str:
    sources = heads.SOURCE, mlp.SOURCE, loss.SOURCE, copies.SOURCE, residual.SOURCE, amx.SOURCE, amx_attention.SOURCE
    facts = kind, sources, dataclasses.astuple(model.config), shape, runtime.device.type, matmul
    return cache.key(repr(facts), native.compiler())


def _recall(key: str, runtime: Runtime) -> dict[str, Any]:
    path = cache.find(runtime.cache, key)
    try:
        value = json.loads(path.read_bytes()) if path is not None else {}
    except (OSError, ValueError):
        value = {}
    return value if isinstance(value, dict) else {}


def _remember(key: str, runtime: Runtime, value: dict[str, Any]) -> None:
    cache.keep(runtime.cache, key, json.dumps(value).encode())
