"""One evaluation with test-time training: the methods' inputs, their table rows and their clock.

Time is measured in token passes: one token through the model's forward is one pass, with its backward three. A method
counts its passes before it starts; the seconds of a pass are measured on its own first steps.
"""

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
    """True if several processes can share the documents."""
    steps: Callable[["Task"], np.ndarray] | None = None
    """The step at which each target will be scored, (N-1,); None: in stream order."""
    takes_context: bool = False
    """True if the method uses `evaluate.context`."""


class Clock:
    """Decides how long to learn; this one has no cap. `pgolf.evaluate.ttt.time_cap` has those that have."""

    stopped = False
    """True if learning ended before the text."""
    probing = False
    """True in a probe, which measures the first steps only."""

    def may_learn(self, left: float) -> bool:
        """True if there is time for one more update with `left` token passes of scoring to do; once False, always
        False."""
        return True

    def took(self, passes: float) -> None:
        """Note a finished step."""


@dataclass(frozen=True, eq=False)
class Task:
    model: GPT
    """A copy of the model, which may be trained."""
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
