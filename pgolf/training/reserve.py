"""Work on train tokens after the last step but inside the training clock, in `train.reserve_seconds`.

The challenge's rulings reject or flag a run that reads train tokens after its 600 s; the records keep 0.5 to 12 s of
them for calibration (`GPTQ_RESERVE_SECONDS`). Here these are the choice of the average and the Hessians that
quantization needs. Every rank takes a share of both. What a piece of work takes is measured before the clock starts,
so that none is begun that would end after the cap.
"""

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pgolf.config import Config
from pgolf.errors import PgolfError
from pgolf.progress import Reporter
from pgolf.quant import calibration_data, hessian, methods
from pgolf.quant.hessian import Calibration
from pgolf.runtime import Runtime
from pgolf.training.holdout import Holdout
from pgolf.training.select_checkpoint import Choice, select_average
from pgolf.training.trainer import Trainer


@dataclass(frozen=True)
class Expected:
    """Seconds that one piece of work takes."""

    candidate: float = 0.0
    """Scoring one set of weights on the held-out slice."""
    batch: float = 0.0
    """Calibrating on one batch."""


@dataclass(frozen=True, eq=False)
class Reserved:
    """Results made inside the training clock."""

    choice: Choice
    statistics: Mapping[str, Calibration]
    """Of the chosen weights; empty when there was no time, or too few train tokens."""
    tokens: int
    """Train tokens that the statistics are of."""


def rehearse(trainer: Trainer, holdout: Holdout, config: Config, runtime: Runtime) -> Expected:
    """Do each kind of work once, before the clock starts, and measure it; rank 0's times are the ones that decide.

    Raises PgolfError when nothing is held out, or when the reserve does not suffice to score one set of weights.
    """
    holdout.require()
    started = time.perf_counter()
    holdout.loss(trainer.model, config.train.sizes_at(1.0)[1], runtime, shared=True)
    scored = time.perf_counter()
    batches = _batches(holdout, config, runtime)
    if batches:
        hessian.calibrate(trainer.model, batches[:1], _gradients(config), runtime=runtime)
        trainer.model.train()
    expected = Expected(scored - started, time.perf_counter() - scored)
    if not runtime.agree(expected.candidate <= config.train.reserve_seconds):
        raise PgolfError(
            f"train.reserve_seconds = {config.train.reserve_seconds:g} is too short: scoring the held-out tokens once "
            f"takes {expected.candidate:.1f} s; raise it, or lower train.holdout_tokens"
        )
    return expected


def inside_clock(
    trainer: Trainer,
    holdout: Holdout,
    config: Config,
    runtime: Runtime,
    reporter: Reporter,
    time_for: Callable[[float], bool],
    expected: Expected,
) -> Reserved:
    """Choose the average, then collect Hessians of the chosen weights for as long as there is time. The trainer keeps
    the last weights."""
    choice = select_average(trainer, holdout, config, runtime, reporter, time_for, expected.candidate)
    batches, done = _batches(holdout, config, runtime), 0
    statistics: Mapping[str, Calibration] = {}
    if batches and time_for(expected.batch):
        last = trainer.weights()
        trainer.model.load_state_dict(choice.weights)
        with reporter.progress("calibrate", sum(map(torch.numel, batches))) as bar:

            def on_progress(tokens: int) -> None:
                nonlocal done
                done = tokens * runtime.world_size
                bar.update(tokens)

            within = functools.partial(_within, time_for, expected.batch)
            gradients, seed = _gradients(config), config.seed
            statistics = hessian.calibrate(trainer.model, batches, gradients, seed, on_progress, runtime, within)
        trainer.model.load_state_dict(last)
        trainer.model.train()
    return Reserved(choice, statistics, done)


def _within(time_for: Callable[[float], bool], expected: float, longest: float) -> bool:
    return time_for(max(expected, longest))


def _gradients(config: Config) -> bool:
    return config.quantize.fisher and methods.of(config.quantize).chooses_steps


def facts(config: Config) -> dict[str, Any]:
    """The settings that the calibration statistics depend on; `quantize` uses them only if these are equal."""
    settings = config.quantize
    return {
        "calibration_tokens": settings.calibration_tokens,
        "sequence": settings.sequence or config.train.seq_len,
        "gradients": _gradients(config),
        "seed": config.seed,
    }


def _batches(holdout: Holdout, config: Config, runtime: Runtime) -> list[torch.Tensor]:
    """This rank's batches of token ids (B, length): those that the `quantize` stage would draw, shared out by row."""
    settings = config.quantize
    length = settings.sequence or config.train.seq_len
    if len(holdout.training) < 2 * length:
        return []
    drawn = calibration_data.batches(
        holdout.training, settings.calibration_tokens, length, choosing=False, seed=config.seed
    )
    rows = torch.cat(drawn)
    even = len(rows) - len(rows) % runtime.world_size  # as many for every rank: they decide together about each batch
    mine = rows[runtime.world_rank : even : runtime.world_size].to(runtime.device)
    return list(mine.split(max(1, calibration_data.BATCH_TOKENS // length))) if even else []
