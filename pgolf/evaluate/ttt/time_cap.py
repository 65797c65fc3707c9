"""Test-time training under a cap on its seconds.

The duration is estimated from its first steps before it starts; the text left when learning must end is scored
without learning and without anything that goes token by token.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pgolf.errors import PgolfError
from pgolf.evaluate import ranks
from pgolf.evaluate.sliding import score_windows, side_by_side, targets_of
from pgolf.evaluate.ttt.task import Clock, Method, Task
from pgolf.evaluate.windows import Window

MARGIN = 1.15  # scoring slower than measured by this much still fits
RESERVE = 1.0  # seconds for writing the result
PROBE_SECONDS, PROBE_STEPS = 0.5, 6
"""Least seconds and steps of a probe, without its two slowest steps, which compile and fill caches."""
PROBE_MOST = 5.0  # seconds without those, after which any further step ends it


class Enough(Exception):
    """A probe has seen enough."""


class Capped(Clock):
    """Ends learning when the time left is needed for scoring."""

    def __init__(self, cap: float, seconds_per_pass: float, started: float) -> None:
        """cap: seconds of the whole evaluation, 0: none; seconds_per_pass: of scoring without learning."""
        self._cap, self._pace, self._started = cap, seconds_per_pass, started

    def may_learn(self, left: float) -> bool:
        if self._cap and not self.stopped:
            elapsed = time.monotonic() - self._started
            self.stopped = elapsed + MARGIN * left * self._pace >= self._cap - RESERVE
        return not self.stopped


class Probe(Clock):
    """Measures the seconds of a token pass on the first steps, with learning or without."""

    probing = True

    def __init__(self, learns: bool) -> None:
        self.stopped, self._last = not learns, time.monotonic()
        self.steps: list[tuple[float, float]] = []
        """Seconds and token passes of each step."""

    def may_learn(self, left: float) -> bool:
        return not self.stopped

    def took(self, passes: float) -> None:
        now = time.monotonic()
        self.steps.append((now - self._last, passes))
        self._last = now
        elapsed = sum(seconds for seconds, _ in self._usual)
        if (len(self._usual) >= PROBE_STEPS and elapsed > PROBE_SECONDS) or elapsed > PROBE_MOST:
            raise Enough

    @property
    def _usual(self) -> list[tuple[float, float]]:
        """The steps but for the two slowest: what is first needed in a later step compiles there."""
        return sorted(self.steps)[:-2]

    @property
    def pace(self) -> float:
        """Seconds per token pass."""
        if not self.steps:
            return 0.0
        seconds, passes = map(sum, zip(*(self._usual or sorted(self.steps)[:1]), strict=True))
        return seconds / max(passes, 1.0)


@dataclass(frozen=True)
class Estimate:
    """Seconds that an evaluation will take, measured on its first steps."""

    scoring: float
    """Without learning."""
    learning: float
    """With all of it."""

    def line(self, seconds: float) -> str:
        """For the screen; seconds: the cap, 0 for none."""
        text = f"about {self.learning:,.0f} s with all its learning, {self.scoring:,.0f} s for scoring alone"
        if not seconds or self.learning <= seconds:
            return text
        gained = (seconds - MARGIN * self.scoring) / max(self.learning - self.scoring, 1e-9)
        return f"{text}; the cap of {seconds:,.0f} s leaves time to learn from about {max(0.0, min(1.0, gained)):.0%}"


def clock(method: Method, begin: Callable[[Clock], Task], on_estimate: Callable[[Estimate], None] | None) -> Clock:
    """A clock that knows the time scoring needs; begin: makes a fresh task with a clock. Takes seconds itself.

    Raises PgolfError when the cap is too little even for scoring without learning.
    """
    begun, paces = time.monotonic(), []
    for learns in (False, True):
        probe = Probe(learns)
        with contextlib.suppress(Enough):
            method.run(begin(probe))
        paces.append(ranks.largest(probe.pace, begin(probe).runtime))
    task = begin(Clock())
    passes, cap = method.passes(task), task.ttt.seconds
    estimate = Estimate(passes.scoring * paces[0], passes.learning * paces[1])
    if on_estimate is not None:
        on_estimate(estimate)
    if cap and estimate.scoring + RESERVE > cap:
        raise PgolfError(
            f"ttt.seconds is {cap:g}, but scoring this text without any learning takes about {estimate.scoring:,.0f} s "
            "here; allow more (--seconds), use more processes (--nproc) or a larger evaluate.stride"
        )
    return Capped(cap, paces[0], begun)


def score_alone(task: Task, plan: Sequence[Window], steps: np.ndarray) -> None:
    """Score windows as sliding evaluation does, with the weights as they are; steps: (N-1,) the step of each target."""
    size, recorder = task.settings.batch_windows, task.recorder
    batches = [list(plan[at : at + size]) for at in range(0, len(plan), size)]
    score = functools.partial(score_windows, task.model, task.tokens, wanted=recorder.wanted, device=task.device)
    for batch, (nll, log_probs) in zip(batches, side_by_side(score, batches, task.runtime), strict=True):
        targets = targets_of(batch)
        recorder.add(targets, nll, steps[targets])
        recorder.log_probs |= log_probs
        task.clock.took(sum(window.length for window in batch))
