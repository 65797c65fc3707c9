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
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

import pgolf.model.kernels.shapes  # noqa: F401 - registers output shapes for torch.compile
from pgolf.model.gpt import GPT, Parts
from pgolf.model.kernels import (
    bfloat16,
    bfloat16_attention,
    cache,
    copies,
    heads,
    mlp,
    native,
    residual,
    whole_loss,
)
from pgolf.model.kernels import scoring as scoring_kernel
from pgolf.model.layers import bfloat16_linear
from pgolf.model.paths import (
    COPIES,
    DIVERGENCE,
    HEADS,
    LOADERS,
    LOSS,
    MLPS,
    NORMS,
    TILED,
    TOLERANCE,
    plain_model,
    use_paths,
)
from pgolf.model.raced_pairs import PAIRS, Shape, Tensors, layer_products, tiled_attention, tiled_products
from pgolf.runtime import Runtime

BFLOAT16_TOLERANCE = 0.05  # 8 bits of mantissa
RACE_SECONDS = 0.11  # for each of at most twelve races, so that all of them take less than 2 s
RACE_ROUNDS = 2, 9  # at least: what disturbs a single run must not decide; and at most
BY_RULE = ("attention in C", "softmax in C", COPIES, NORMS, DIVERGENCE)
"""The kernels that won by 1.3 to 10 times at every instruction set measured, which for the divergence is AVX2 alone;
products in C won at some only (benchmarks/results/training_speed.md and quantization.md)."""
COMPILE_SECONDS, COMPILE_SPEEDUP = 45.0, 1.25
"""Estimated cost and gain of torch.compile on a CPU, not measured; used until this machine has measured
its own (`remember_compilation`)."""
_PARTS = {
    HEADS: ("attention in C",),
    TILED: ("bfloat16 in C", "attention in C"),
}
"""By kernel, those that it goes with: it is raced where they win."""


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

    def prepare(name: str, before: dict[str, Timing]) -> None:
        """Load a kernel, and put the model on the float32 paths that have won so far."""
        for part in _PARTS.get(name, ()):
            if not (part in before and before[part].used):
                raise native.Unavailable(f"{part} is off")
        LOADERS[name](model, runtime.cache)
        use_paths(model, [name for name, timing in before.items() if timing.used and name in PAIRS])

    def race(name: str, before: dict[str, Timing]) -> Timing:
        prepare(name, before)
        plain, fast = PAIRS[name](model, shape)
        return _race(plain, fast, TOLERANCE, shape)

    def race_bfloat16(before: dict[str, Timing]) -> Timing:
        """Against the faster of torch and C in float32."""
        plain, fast = layer_products(model, shape, bfloat16_linear)
        found = _race(plain, fast, BFLOAT16_TOLERANCE, shape)
        layers = before.get("layer products in C")
        share = 1.0 if layers is None else min(1.0, layers.fast / layers.plain)
        return found._replace(plain=found.plain * share)

    def race_tiles(before: dict[str, Timing]) -> Timing:
        """Against the faster of the float32 ways, less what torch gains in bfloat16 where that is the other choice."""
        prepare("bfloat16 in C", before)
        plain, fast = tiled_products(model, shape)
        found, by_torch = _race(plain, fast, BFLOAT16_TOLERANCE, shape), before["bfloat16 products"]
        share = by_torch.fast / by_torch.plain if by_torch.used or matmul == "bfloat16" else 1.0
        return found._replace(plain=found.plain * share)

    def race_tiled_attention(before: dict[str, Timing]) -> Timing:
        prepare(TILED, before)
        plain, fast = tiled_attention(model, shape, HEADS in before and before[HEADS].used)
        return _race(plain, fast, BFLOAT16_TOLERANCE, shape)

    left_out = {*_left_out(model, shape), DIVERGENCE}  # a step of training computes none
    made: dict[str, Callable[[dict[str, Timing]], Timing]] = {
        name: functools.partial(race, name) for name in PAIRS if name not in left_out
    }
    if shape.training and matmul != "float32":
        made |= {"bfloat16 products": race_bfloat16, "bfloat16 in C": race_tiles, TILED: race_tiled_attention}
    return made


def _left_out(model: GPT, shape: Shape) -> set[str]:
    """Kernels of `PAIRS` for parts that this model does not have."""
    left_out = set() if model.copy_heads is not None else {COPIES}
    if not shape.training or model.blocks[0].resid_mix is None or model.lanes is not None:
        left_out.add(NORMS)
    if not shape.training:
        left_out |= {MLPS, HEADS, LOSS}
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


def _key(kind: str, model: GPT, runtime: Runtime, shape: Shape, matmul: str = "") -> str:
    kernels = heads, mlp, whole_loss, copies, residual, bfloat16, bfloat16_attention
    sources = [kernel.SOURCE for kernel in kernels]
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
