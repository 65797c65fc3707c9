"""The training loop. There is no other: the `train` stage, the packaged program and the benchmarks all call `fit`.

Building the model, compiling and warming up come before the training clock starts; the last checkpoint comes after it
has stopped. Under torchrun every rank calls `fit` with the same configuration. Whatever could differ between them is
decided together: the initial weights are rank 0's, a compiler that fails on one rank is used on none, and the weights
are compared at every checkpoint.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pgolf.config import Config
from pgolf.errors import PgolfError, RankError
from pgolf.model import fast_paths
from pgolf.model.flops import training_flops_per_token
from pgolf.model.gpt import GPT
from pgolf.model.kernels import native
from pgolf.progress import Reporter
from pgolf.runtime import Runtime
from pgolf.tokens.loader import Loader
from pgolf.training.budget_clock import Control
from pgolf.training.holdout import Holdout
from pgolf.training.nonfinite import StepResult
from pgolf.training.reserve import Reserved, inside_clock, rehearse
from pgolf.training.trainer import Trainer

_CORE_FLOPS = 5e10  # float32 operations per second of one CPU core, generously: products of large matrices with AVX2
_FEWEST_STEPS = 10  # a clock that a CPU cannot fill with so many steps was meant for a GPU
_PASSES_AFTER = 0.02  # fraction of training after which the pace is known well enough to tell the number of passes
_SHOW_SECONDS = 0.2  # between two updates of the progress bar
_RATE_SECONDS = 2.0  # that the shown tokens per second are a mean over, at least


@dataclass(frozen=True)
class At:
    """Where a run is."""

    elapsed: float
    """Seconds on the training clock."""
    tokens: int
    learning_rate: float
    """Of the matrices, in the last step."""


@dataclass(frozen=True)
class Hooks:
    """What a caller adds to the loop."""

    resume: tuple[Mapping[str, Tensor], Mapping[str, Any]] | None = None
    """What `save` was given last in an earlier attempt at the same run."""
    save: Callable[[Mapping[str, Tensor], Mapping[str, Any]], None] | None = None
    """Takes a checkpoint, on rank 0. The tensors are copies: they may be written while training goes on."""
    stop: AbstractContextManager[Callable[[], bool]] = field(default_factory=lambda: nullcontext(lambda: False))
    """Entered around the loop; asked before every step on rank 0 whether to stop there."""
    known: Callable[[Sequence[StepResult], At], None] = lambda results, at: None
    """Told the results of steps as they become known, on every rank."""
    finish: bool = False
    """Make no step: end the run where `resume` has it."""


@dataclass(frozen=True, eq=False)
class Fit:
    """A training run that has ended, or was stopped."""

    trainer: Trainer
    path: str
    """How steps were computed: `compiled`, `C kernels` or `plain`."""
    fast_paths: dict[str, Any]
    """What was measured to choose that, and what torch.compile cost and gained."""
    seconds: float
    """On the training clock, over all restarts."""
    paused: float
    """Seconds that the clock stood still for checkpoints, in this attempt."""
    interrupted: bool
    reserved: Reserved | None
    """With `train.reserve_seconds`: what was chosen and measured on train tokens inside the clock."""

    def metrics(self) -> dict[str, Any]:
        trainer, seconds = self.trainer, self.seconds
        return {
            "iterations": trainer.iteration,
            "tokens": trainer.tokens,
            "parameters": trainer.parameters,
            "seconds": round(seconds, 3),
            "tokens_per_second": round(trainer.tokens / seconds, 1) if seconds else 0.0,
        }


def fit(
    config: Config,
    loader: Loader,
    holdout: Holdout,
    runtime: Runtime,
    reporter: Reporter,
    hooks: Hooks | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Fit:
    """Train a model of `config` on the batches of `loader`.

    holdout: only looked at with `train.reserve_seconds`. clock: what training time is measured by.
    Raises PgolfError for a configuration that this machine cannot train, a reserve that is too short, a loss that is
    not finite, or ranks whose weights differ.
    """
    try:
        return _fit(config, loader, holdout, runtime, reporter, hooks or Hooks(), clock)
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "not enough memory" not in str(error):
            raise
        batch_tokens, _ = config.train.sizes_at(0.0)
        at_once = config.train.micro_tokens or batch_tokens // runtime.world_size
        raise RankError(
            f"out of memory on {runtime.device} in a pass of {at_once:,} tokens; lower train.micro_tokens, for example "
            f"to {max(config.train.seq_len, at_once // 2)}: the result is the same"
        ) from error


def _fit(
    config: Config,
    loader: Loader,
    holdout: Holdout,
    runtime: Runtime,
    reporter: Reporter,
    hooks: Hooks,
    clock: Callable[[], float],
) -> Fit:
    train = config.train
    torch.manual_seed(config.seed)
    model = GPT(config.model).to(runtime.device).train()
    model.compute_dtype = runtime.dtype
    trainer = Trainer(model, loader, config, runtime)
    _check_machine(model, config, runtime)
    elapsed = 0.0
    if hooks.resume is not None:
        trainer.restore(*hooks.resume)
        elapsed = hooks.resume[1]["elapsed"]
    trainer.synchronize()
    control = Control(train.iterations, train.seconds, runtime, elapsed, train.reserve_seconds, clock)
    path, interrupted, expected = "none", False, None
    measured: dict[str, Any] = {}
    if not hooks.finish:
        reporter.message(f"training {trainer.parameters:,} weights on {runtime}")
        path, measured = prepare(trainer, config, runtime, reporter)
        expected = rehearse(trainer, holdout, config, runtime) if train.reserve_seconds else None
        interrupted = _loop(config, trainer, runtime, reporter, hooks, control)
    reserved = None
    if train.reserve_seconds and not interrupted:
        expected = expected or rehearse(trainer, holdout, config, runtime)
        control.start()
        reserved = inside_clock(trainer, holdout, config, runtime, reporter, control.time_for, expected)
        control.pause()
    return Fit(trainer, path, measured, control.elapsed, control.paused, interrupted, reserved)


def _loop(
    config: Config, trainer: Trainer, runtime: Runtime, reporter: Reporter, hooks: Hooks, control: Control
) -> bool:
    """Step until the iterations or the clock are used up. Returns whether it was stopped before."""
    train = config.train
    total, unit = (train.seconds, "s") if train.seconds else (float(train.iterations), "steps")
    saved_at = [trainer.iteration, control.elapsed]
    told_passes = hooks.resume is not None
    shown = _Shown(trainer, control)

    def known(results: Sequence[StepResult]) -> None:
        shown.take(results)
        hooks.known(results, At(control.elapsed, trainer.tokens, trainer.learning_rate))

    def save() -> None:
        trainer.check_ranks()
        if runtime.is_main and hooks.save is not None:
            tensors, values = trainer.snapshot()
            hooks.save(tensors, values | {"elapsed": control.elapsed})
        saved_at[:] = [trainer.iteration, control.elapsed]

    with hooks.stop as requested, reporter.progress("train", total, unit) as bar:
        control.start()
        while not (decision := control.decide(trainer.iteration, requested(), trainer.in_flight)).stop:
            if not told_passes and decision.fraction >= _PASSES_AFTER:
                told_passes = True
                expected = trainer.tokens / decision.fraction
                reporter.message(
                    f"about {expected:,.0f} tokens will be trained on, {expected / len(trainer.stream):.2g} passes "
                    f"over the {len(trainer.stream):,} train tokens"
                )
            known(trainer.step(decision.fraction))
            if shown.due():
                bar.update(control.elapsed if train.seconds else trainer.iteration, note=shown.note())
            if (
                trainer.iteration - saved_at[0] >= train.checkpoint_every
                or 0 < train.checkpoint_seconds <= control.elapsed - saved_at[1]
            ):
                known(trainer.drain())  # the device is idle now, and no checkpoint holds weights that went bad
                with control.stopped():
                    save()
        known(trainer.drain())
        control.pause()
        save()
    return decision.interrupted


class _Shown:
    """What stands beside the progress bar: step, running mean of the loss, tokens per second of late."""

    def __init__(self, trainer: Trainer, control: Control) -> None:
        self._trainer, self._control = trainer, control
        self._loss: float | None = None
        self._at = 0.0
        self._since = (control.elapsed, trainer.tokens)
        self._rate = 0.0

    def take(self, results: Sequence[StepResult]) -> None:
        for result in results:
            self._loss = result.loss if self._loss is None else 0.9 * self._loss + 0.1 * result.loss

    def due(self) -> bool:
        now = time.monotonic()
        if now - self._at < _SHOW_SECONDS or self._loss is None:
            return False
        self._at = now
        return True

    def note(self) -> str:
        elapsed, tokens = self._control.elapsed, self._trainer.tokens
        if elapsed - self._since[0] >= _RATE_SECONDS or not self._rate:
            self._rate = (tokens - self._since[1]) / max(elapsed - self._since[0], 1e-9)
            self._since = elapsed, tokens
        return f"step {self._trainer.iteration}  loss {self._loss:.3f}  {self._rate:,.0f} tokens/s"


def prepare(trainer: Trainer, config: Config, runtime: Runtime, reporter: Reporter) -> tuple[str, dict[str, Any]]:
    """Choose the fastest paths by measuring and warm them up; the trainer's state is as before afterwards.

    Returns what runs (`compiled`, `C kernels` or `plain`) and the measurements, for the manifest.
    """
    train, model = config.train, trainer.model
    fractions = sorted({*train.breakpoints(), *config.model.breakpoints()})
    batch_tokens, seq_len = train.sizes_at(fractions[-1])
    rank_tokens = batch_tokens // runtime.world_size
    rows = max(1, min(train.micro_tokens or rank_tokens, rank_tokens) // seq_len)
    shape = fast_paths.Shape(rows, seq_len, training=True, threads=runtime.threads)
    choice = fast_paths.choose_paths(model, runtime, shape, train.matmul)
    if choice.timings or choice.notes:
        reporter.message(choice.line(), detail=True)
    facts = choice.describe()
    with trainer.undone():
        compiled = False
        if train.compile and runtime.compile:
            compiled, facts["torch.compile"] = _compile(trainer, config, runtime, reporter, shape, fractions)
        for fraction in fractions:
            trainer.warm_up(fraction)
    in_c = any(timing.used for name, timing in choice.timings.items() if name.endswith("in C"))
    return "compiled" if compiled else "C kernels" if in_c else "plain", facts


def _compile(
    trainer: Trainer,
    config: Config,
    runtime: Runtime,
    reporter: Reporter,
    shape: fast_paths.Shape,
    fractions: Sequence[float],
) -> tuple[bool, dict[str, Any]]:
    """Use torch.compile where it saves more of what is left of the run than it costs. Returns whether, and why."""
    train, model = config.train, trainer.model
    if runtime.device.type == "cpu" and native.compiler() is None:
        reporter.message("torch.compile is off: no C++ compiler found", detail=True)
        return False, {"used": False, "unavailable": "no C++ compiler found"}
    before = _step_seconds(trainer, fractions[-1])
    budget = min(train.seconds or math.inf, (train.iterations - trainer.iteration) * before)
    known = fast_paths.known_compilation(model, runtime, shape)
    source = "measured before" if known.measured else "expected"
    facts: dict[str, Any] = {
        "used": False, "budget_seconds": round(budget, 1), "compile_seconds": round(known.seconds, 1),
        "speedup": round(known.speedup, 3), "estimate": source,
    }  # fmt: skip
    if not runtime.agree(known.pays(budget)):
        saved = budget * (1 - 1 / max(known.speedup, 1.0))
        reporter.message(
            f"torch.compile is off: {source} to save {saved:.0f} s of {budget:.0f} s of steps and to cost "
            f"{known.seconds:.0f} s",
            detail=True,
        )
        return False, facts
    fast_paths.use_graph(model, runtime)
    begun = time.perf_counter()
    if _compiles(trainer, fractions, runtime, reporter):
        cost = time.perf_counter() - begun
        speedup = before / _step_seconds(trainer, fractions[-1])
        fast_paths.remember_compilation(model, runtime, shape, cost, speedup)
        facts |= {"compile_seconds": round(cost, 1), "speedup": round(speedup, 3), "estimate": "measured"}
        if runtime.agree(speedup > 1.0):
            reporter.message(f"torch.compile is on: {cost:.0f} s to compile, steps {speedup:.2f} times as fast")
            return True, facts | {"used": True}
        reporter.message(f"torch.compile is off: steps are {speedup:.2f} times as fast with it", detail=True)
    fast_paths.without_graph(model)
    return False, facts


def _step_seconds(trainer: Trainer, fraction: float) -> float:
    """The faster of two steps after a first one; every rank makes as many."""
    times: list[float] = []
    for _ in range(3):
        begun = time.perf_counter()
        trainer.warm_up(fraction)
        if trainer.flat.data.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return min(times[1:])


def _compiles(trainer: Trainer, fractions: Sequence[float], runtime: Runtime, reporter: Reporter) -> bool:
    """Whether torch.compile works on all ranks. They do not communicate until each has tried: none waits in vain."""
    reason = ""
    try:
        with reporter.progress("compile"):
            for fraction in fractions:
                for _ in range(2):
                    trainer.warm_up(fraction, alone=True)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # torch raises whatever its compilers raise, and all of it means the same here
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    worked = runtime.agree(not reason)
    if not worked:
        reason = reason or "it failed on another process"
        reporter.message(f"torch.compile does not work here, training goes on without it ({reason})")
    return worked


def _check_machine(model: GPT, config: Config, runtime: Runtime) -> None:
    """Raises PgolfError when a CPU is to do a GPU's work: it would take minutes or hours a step behind a still bar."""
    train = config.train
    if runtime.device.type != "cpu" or not train.seconds:
        return
    batch_tokens, seq_len = train.sizes_at(0.0)
    operations = batch_tokens * training_flops_per_token(model, seq_len)
    seconds = operations / (_CORE_FLOPS * runtime.threads * runtime.world_size)
    if seconds * _FEWEST_STEPS > train.seconds:
        raise PgolfError(
            f"a step of {batch_tokens:,} tokens is {operations / 1e12:.0f} TFLOP, at least {seconds:.0f} s on the CPU: "
            f"too slow for train.seconds = {train.seconds:g}; this configuration needs a GPU, and pgolf runs on "
            f"{runtime}. Lower train.batch_tokens, or choose a smaller preset"
        )
