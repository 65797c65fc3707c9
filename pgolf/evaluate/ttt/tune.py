"""Choosing the settings of test-time training on held-out train text, never on val.

A coordinate search: from the settings given, each rate in turn is tried at three times and at a third of its value, and
the better one is kept. It costs at most nine evaluations, so the text is short; the search finds a rate's order of
magnitude and not its third digit.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from pgolf.config.evaluate import EvaluateConfig
from pgolf.config.ttt import TttConfig
from pgolf.evaluate.ttt.methods import TttEvaluator, of
from pgolf.model.gpt import GPT
from pgolf.runtime import Runtime

FACTORS = (3.0, 1 / 3.0)


@dataclass(frozen=True)
class Trial:
    changes: dict[str, object]  # against the settings the search began with
    nats_per_token: float


def tune(
    model: GPT,
    held_out: np.ndarray,
    settings: EvaluateConfig,
    ttt: TttConfig,
    runtime: Runtime,
    on_trial: Callable[[int], None] | None = None,
) -> tuple[TttConfig, list[Trial]]:
    """The best settings found and everything that was tried, in order.

    held_out: (n,) train tokens that training did not see. on_trial: called with the number of trials done.
    """
    trials: list[Trial] = []
    changes: dict[str, object] = {}

    def loss(tried: dict[str, object]) -> float:
        attempt = replace(ttt, seconds=0.0, **tried)  # type: ignore[arg-type]
        nats = float(TttEvaluator(model, settings, attempt, runtime).score(held_out).nll.mean())
        trials.append(Trial(tried, nats))
        if on_trial is not None:
            on_trial(len(trials))
        return nats

    best = loss(changes)
    for name in of(ttt).rates:
        start = getattr(ttt, name)
        for factor in FACTORS:
            value = tuple(rate * factor for rate in start) if isinstance(start, tuple) else start * factor
            if value == start:
                break  # off, and off it stays
            found = loss(changes | {name: value})
            if found < best:
                best, changes = found, changes | {name: value}
                break
    return replace(ttt, **changes), trials  # type: ignore[arg-type]


def trials_at_most(ttt: TttConfig) -> int:
    return 1 + len(FACTORS) * len(of(ttt).rates)
