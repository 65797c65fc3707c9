"""One evaluation with test-time training: what its methods get, what each states about itself, and its clock.

Time is measured in token passes: one token through the model's forward is one pass, with its backward three. A method
counts its passes before it starts; the seconds of a pass are measured on its own first steps.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from pgolf.config.evaluate import EvaluateConfig
from pgolf.config.ttt import TttConfig
from pgolf.evaluate.evaluator import Trace
from pgolf.evaluate.trace_recorder import Recorder
from pgolf.model.gpt import GPT
from pgolf.runtime import Runtime

LEARNING = 3.0  # passes of a forward and backward
MARGIN = 1.15  # scoring slower than measured by this much still fits
RESERVE = 1.0  # seconds for writing the result
PROBE_SECONDS, PROBE_STEPS = 0.5, 6
"""A probe goes on for so long and so many steps, the first not counted: it compiles and fills caches."""
PROBE_MOST = 5.0  # seconds after which any further step ends it


class Passes(NamedTuple):
    """Token passes of one process for a whole text."""

    scoring: float
    """Without learning."""
    learning: float
    """With all of it, the scoring included."""


@dataclass(frozen=True)
class Method:
    """A row of the table of methods (`pgolf.evaluate.ttt.methods`)."""

    run: Callable[["Task"], Trace]
    passes: Callable[["Task"], Passes]
    rates: tuple[str, ...]
    """Settings that `--tune` tries, in this order."""
    per_document: bool = False
    """Claim: no context crosses a document's beginning, whatever `evaluate.reset_at_documents` is."""
    forgets: bool = False
    """Claim: nothing learned in a document lasts beyond it."""
    shared: bool = False
    """Whether several processes share the documents."""
    takes_context: bool = False
    """Whether it follows `evaluate.context`."""


class Clock:
    """Decides when learning must stop so that what is left can still be scored in time."""

    def __init__(self, cap: float = 0.0, seconds_per_pass: float = 0.0, started: float | None = None) -> None:
        """cap: seconds of the whole evaluation, 0: none; seconds_per_pass: of scoring without learning."""
        self._cap, self._pace = cap, seconds_per_pass
        self.started = time.monotonic() if started is None else started
        self.stopped = False

    def may_learn(self, left: float) -> bool:
        """Whether there is time to learn once more with `left` token passes of scoring to do; once no, always no."""
        if self._cap and not self.stopped:
            elapsed = time.monotonic() - self.started
            self.stopped = elapsed + MARGIN * left * self._pace >= self._cap - RESERVE
        return not self.stopped

    def took(self, passes: float) -> None:
        """Note a finished step."""


class Enough(Exception):
    """A probe has seen enough."""


class Probe(Clock):
    """Measures the seconds of a token pass on the first steps, with learning or without."""

    def __init__(self, learns: bool) -> None:
        super().__init__()
        self.stopped = not learns
        self.first, self.rest, self._steps = (0.0, 0.0), (0.0, 0.0), 0

    def took(self, passes: float) -> None:
        elapsed = time.monotonic() - self.started - self.first[0]
        if not self._steps:
            self.first = elapsed, passes
        else:
            self.rest = elapsed, self.rest[1] + passes
        self._steps += 1
        if (self._steps > PROBE_STEPS and elapsed > PROBE_SECONDS) or elapsed > PROBE_MOST:
            raise Enough

    @property
    def pace(self) -> float:
        """Seconds per token pass."""
        seconds, passes = self.rest if self.rest[1] else self.first
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


@dataclass(frozen=True, eq=False)
class Task:
    model: GPT
    """A copy of its own, which learns."""
    tokens: np.ndarray  # (N,)
    settings: EvaluateConfig
    ttt: TttConfig
    runtime: Runtime
    recorder: Recorder
    clock: Clock = field(default_factory=Clock)

    @property
    def bos_id(self) -> int:
        return self.model.config.bos_id

    @property
    def device(self) -> torch.device:
        return self.runtime.device

    @property
    def probing(self) -> bool:
        return isinstance(self.clock, Probe)
