"""One evaluation with test-time training, as its methods see it."""

import time
from dataclasses import dataclass, field

import numpy as np
import torch

from pgolf.config.evaluate import EvaluateConfig
from pgolf.config.ttt import TttConfig
from pgolf.evaluate.trace_recorder import Recorder
from pgolf.model.gpt import GPT


@dataclass(frozen=True, eq=False)
class Task:
    model: GPT
    """A copy of its own, which learns."""
    tokens: np.ndarray  # (N,)
    settings: EvaluateConfig
    ttt: TttConfig
    device: torch.device
    recorder: Recorder
    started: float = field(default_factory=time.monotonic)

    @property
    def bos_id(self) -> int:
        return self.model.config.bos_id

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started


class Clock:
    """Decides when learning must stop so that what is left can still be scored in time."""

    def __init__(self, task: Task) -> None:
        self._task, self._scoring, self._scored = task, 0.0, 0
        self.stopped = False

    def scored(self, seconds: float, targets: int) -> None:
        """Note what scoring alone took."""
        self._scoring, self._scored = self._scoring + seconds, self._scored + targets

    def may_learn(self, left: int) -> bool:
        """Whether there is time to learn once more with `left` targets unscored; once false, always false."""
        cap = self._task.ttt.seconds
        if cap and not self.stopped:
            need = left * self._scoring / max(1, self._scored)
            self.stopped = self._task.elapsed + MARGIN * need >= cap - RESERVE
        return not self.stopped


MARGIN = 1.1  # scoring slower than so far by this much still fits
RESERVE = 1.0  # seconds for writing the result
