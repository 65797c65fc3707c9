"""Writing down scores as they are fixed, each once."""

import numpy as np
from torch import Tensor

from pgolf.evaluate import ranks, windows
from pgolf.evaluate.distributions import chosen, parts
from pgolf.evaluate.evaluator import OnProgress, Positions, Trace
from pgolf.runtime import Runtime


class Recorder:
    """The trace of an evaluation under way."""

    def __init__(
        self,
        count: int,
        positions: Positions,
        on_progress: OnProgress | None,
    ) -> None:
        """count: targets of the stream."""
        self.nll, self.order = np.zeros(count), np.zeros(count, dtype=np.int64)
        self.wanted = parts(positions) if positions else {}
        self.log_probs: dict[int, np.ndarray] = {}
        self.updates: list[tuple[int, int, int, int, bool]] = []
        self._times = np.zeros(count, dtype=np.int64)
        self._on_progress, self._done, self._total = on_progress, 0, 0.0

    def add(self, targets: np.ndarray, nll: np.ndarray, order: np.ndarray | int) -> None:
        """targets: index into the scores; nll: their nats; order: the evaluation step of each."""
        self.nll[targets], self.order[targets] = nll, order
        np.add.at(self._times, targets, 1)
        self._done, self._total = self._done + targets.size, self._total + float(nll.sum())
        if self._on_progress is not None:
            self._on_progress(self._done, self._total / self._done)

    def learned(self, step: int, first: int, last: int, count: int = 1, each: bool = False) -> None:
        """Note `count` updates from targets first .. last, made after the scores of `step`.

        each: an update follows every target, whose own step the first has here and each next one step later.
        """
        self.updates.append((int(step), int(first), int(last), int(count), each))

    def keep(self, targets: np.ndarray, logits: Tensor) -> None:
        """Keep the distributions at the requested positions; logits (n, vocab_size) of the targets."""
        if self.wanted:
            self.log_probs |= chosen(lambda rows: logits[rows], targets + 1, self.wanted)

    def gather_ranks(self, runtime: Runtime) -> None:
        """Add the scores of the other processes."""
        self.nll, self.order, self._times = (ranks.total(v, runtime) for v in (self.nll, self.order, self._times))
        self.updates = ranks.joined(self.updates, runtime)
        self.log_probs = dict(ranks.joined([*self.log_probs.items()], runtime))

    def trace(self, **facts: object) -> Trace:
        """Raises CheckFailed unless every target was scored exactly once."""
        windows.check_coverage(self._times)
        return Trace(self.nll, self.order, self.log_probs, self.updates, facts)
