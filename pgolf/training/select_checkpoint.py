"""Select the weights to go on with: the last ones, an average kept during training, or a blend of the two.

By the loss on the held-out slice of the train tokens, which training never saw.
"""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pgolf.config import Config
from pgolf.model.gpt import GPT
from pgolf.progress import Reporter
from pgolf.runtime import Runtime
from pgolf.training.holdout import Holdout
from pgolf.training.trainer import Trainer

Weights = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Choice:
    weights: Weights
    name: str
    losses: Mapping[str, float]
    """Nats per token on the held-out slice, of every candidate in the order tried."""
    average: str | None
    """The average that the weights are, or are a blend of; None for the last weights."""
    share: float
    """Of the average in the weights, the rest being the last weights."""


def blend(last: Weights, average: Weights, share: float) -> Weights:
    """`share` of the average, the rest of the last weights."""
    return average if share == 1 else {key: torch.lerp(value, average[key], share) for key, value in last.items()}


def select(
    model: GPT,
    holdout: Holdout,
    seq_len: int,
    runtime: Runtime,
    last: Weights,
    averages: Mapping[str, Callable[[], Weights]],
    shares: Sequence[float],
    reporter: Reporter,
    time_for: Callable[[float], bool] | None = None,
    longest: float = 0.0,
) -> Choice:
    """Score the last weights, each average, and blends of the best average with the last weights.

    model: is left with the weights scored last. averages: by name, how to get them; one is held at a time. shares: of
    the average in a blend. time_for: every rank calls this function and scores a share of the slice; it tells whether
    another candidate may be scored that will take as many seconds; longest: how many one is expected to take.
    Raises PgolfError when nothing is held out.
    """
    holdout.require()
    losses: dict[str, float] = {}
    best = Choice(last, "last", losses, None, 0.0)
    average: tuple[str, Weights] | None = None
    with reporter.progress("ema-finalize", 1 + len(averages) + len(shares)) as bar:

        def attempt(name: str, weights: Weights, source: str | None, share: float) -> bool:
            """Score a candidate; False when no time is left."""
            nonlocal best, longest
            started = time.perf_counter()
            if losses and time_for is not None and not time_for(longest):
                return False
            model.load_state_dict(weights)
            losses[name] = holdout.loss(model, seq_len, runtime, shared=time_for is not None)
            if losses[name] < losses[best.name]:
                best = Choice(weights, name, losses, source, share)
            longest = max(longest, time.perf_counter() - started)
            bar.update(len(losses), note=f"{best.name} {losses[best.name]:.4f}")
            return True

        attempt("last", last, None, 0.0)
        for name, get in averages.items():
            weights = get()
            if attempt(name, weights, name, 1.0) and (average is None or losses[name] <= losses[average[0]]):
                average = name, weights
        for share in shares if average is not None else ():
            assert average is not None
            name, weights = average
            attempt(f"{share:g} {name} + {1 - share:g} last", blend(last, weights, share), name, share)
    return best


def select_average(
    trainer: Trainer,
    holdout: Holdout,
    config: Config,
    runtime: Runtime,
    reporter: Reporter,
    time_for: Callable[[float], bool] | None = None,
    expected: float = 0.0,
) -> Choice:
    """Select among the last weights, the averages of a run and their blends; see `select`. The trainer keeps the last
    weights. Raises PgolfError when nothing is held out."""
    last = trainer.weights()
    averages = {name: functools.partial(trainer.weights, flat) for name, flat in trainer.averages.finished().items()}
    _, seq_len = config.train.sizes_at(1.0)
    model, shares = trainer.model, config.average.interpolate
    choice = select(model, holdout, seq_len, runtime, last, averages, shares, reporter, time_for, expected)
    model.load_state_dict(last)
    return choice
