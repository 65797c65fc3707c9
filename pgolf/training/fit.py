"""The training loop, used by the `train` stage, the packaged program and the benchmarks.

Building the model, compiling and warming up come before the training clock starts; the last checkpoint comes after it
has stopped. Under torchrun every rank calls `fit` with the same configuration; the initial weights are rank 0's, and
the weights are compared at every checkpoint.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from pgolf.config import Config
from pgolf.errors import RankError
from pgolf.model.gpt import GPT
from pgolf.progress import Reporter
from pgolf.runtime import Runtime
from pgolf.tokens.loader import Loader
from pgolf.training.budget_clock import Control
from pgolf.training.holdout import Holdout
from pgolf.training.likeness import likeness
from pgolf.training.nonfinite import NotFinite, StepResult
from pgolf.training.reserve import Reserved, inside_clock, rehearse
from pgolf.training.trainer import Trainer


@dataclass(frozen=True)
class At:
    """The position in a run."""

    elapsed: float
    """Seconds on the training clock."""
    tokens: int
    learning_rate: float
    """Of the matrices, in the last step."""
    fraction: float = 0.0
    """Fraction of training at the beginning of that step."""


def warm_up(trainer: Trainer, config: Config, runtime: Runtime, reporter: Reporter) -> tuple[str, dict[str, Any]]:
    """Make a step of every kind that the schedules have, on the paths that are in use, and undo it."""
    with trainer.undone():
        for fraction in sorted({*config.train.breakpoints(), *config.model.breakpoints()}):
            trainer.warm_up(fraction)
    return "plain", {}


@dataclass(frozen=True)
class Hooks:
    """Callbacks of the caller."""

    prepare: Callable[[Trainer, Config, Runtime, Reporter], tuple[str, dict[str, Any]]] = warm_up
    """Chooses how steps are computed and warms them up before the clock starts; `prepare.prepare` measures. Returns
    `Fit.path` and `Fit.fast_paths`. It leaves the trainer's state as it was."""
    resume: Callable[[Trainer], float] | None = None
    """Restores the last checkpoint of an interrupted run; returns the seconds that its clock had reached."""
    save: Callable[[Trainer, float], None] | None = None
    """Takes a checkpoint, on every rank, given the seconds on the clock. The device is idle."""
    stop: AbstractContextManager[Callable[[], bool]] = field(default_factory=lambda: nullcontext(lambda: False))
    """Entered around the loop; asked before every step on rank 0 whether to stop there."""
    known: Callable[[Sequence[StepResult], At], None] = lambda results, at: None
    """Told the results of steps as they become known, on every rank."""
    explain: Callable[[Trainer, NotFinite], str] | None = None
    """Says where a value that is not finite began; None: only the step is named."""
    finish: bool = False
    """Make no step: end the run where `resume` has it."""


@dataclass(frozen=True, eq=False)
class Fit:
    """A training run that has ended, or was stopped."""

    trainer: Trainer
    path: str
    """Execution path of the steps: `compiled`, `C kernels` or `plain`."""
    fast_paths: dict[str, Any]
    """Measurements behind that choice, and the cost and gain of torch.compile."""
    seconds: float
    """On the training clock, over all restarts."""
    paused: float
    """Seconds that the clock stood still for checkpoints, in this attempt."""
    interrupted: bool
    reserved: Reserved | None
    """With `train.reserve_seconds`: the choice of the average and the Hessians, made inside the clock."""

    def run_metrics(self) -> dict[str, Any]:
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
    pieces: Sequence[bytes] | None = None,
) -> Fit:
    """Train a model of `config` on the batches of `loader`.

    holdout: its held-out part is read only with `train.reserve_seconds`. clock: returns seconds; tests pass their own.
    pieces: the text of each token, which `optim.shared_spelling` needs.
    Raises PgolfError for a configuration that this machine cannot train, a reserve that is too short, a loss that is
    not finite, or ranks whose weights differ.
    """
    train, hooks = config.train, hooks or Hooks()
    torch.manual_seed(config.seed)
    model = GPT(config.model).to(runtime.device).train()
    model.compute_dtype = runtime.dtype
    alike, elapsed = None, 0.0
    if config.optim.shared_lr:
        begun = clock()
        alike = likeness(holdout.training, pieces, config)
        elapsed = clock() - begun  # it learns from the text, so it is training
    trainer = Trainer(model, loader, config, runtime, alike)
    if hooks.resume is not None:
        elapsed = hooks.resume(trainer)
    trainer.synchronize()
    control = Control(train.iterations, train.seconds, runtime, elapsed, train.reserve_seconds, clock)
    path, interrupted, expected = "none", False, None
    measured: dict[str, Any] = {}
    if not hooks.finish:
        reporter.message(f"training {trainer.parameters:,} weights on {runtime}")
        path, measured = hooks.prepare(trainer, config, runtime, reporter)
        expected = rehearse(trainer, holdout, config, runtime) if train.reserve_seconds else None
        try:
            interrupted = _loop(config, trainer, hooks, control)
        except NotFinite as error:
            raise RankError(hooks.explain(trainer, error) if hooks.explain else f"{error}") from error
    reserved = None
    if train.reserve_seconds and not interrupted:
        expected = expected or rehearse(trainer, holdout, config, runtime)
        control.start()
        reserved = inside_clock(trainer, holdout, config, runtime, reporter, control.time_for, expected)
        control.pause()
    return Fit(trainer, path, measured, control.elapsed, control.paused, interrupted, reserved)


def _loop(config: Config, trainer: Trainer, hooks: Hooks, control: Control) -> bool:
    """Step until the iterations or the clock are used up. Returns whether it was stopped before."""
    train = config.train
    saved_at = [trainer.iteration, control.elapsed]

    def known(results: Sequence[StepResult]) -> None:
        hooks.known(results, At(control.elapsed, trainer.tokens, trainer.learning_rate, decision.fraction))

    def save() -> None:
        if hooks.save is not None:
            hooks.save(trainer, control.elapsed)
        saved_at[:] = [trainer.iteration, control.elapsed]

    with hooks.stop as requested:
        control.start()
        while not (decision := control.decide(trainer.iteration, requested(), trainer.in_flight)).stop:
            known(trainer.step(decision.fraction))
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
