"""The evaluator interface, for everything that uses or audits one.

An evaluator turns a token stream into one score per target and the order in which the scores were fixed. On request it
also gives the whole distribution it held at some positions, so that an audit can check that it sums to one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

OnProgress = Callable[[int, float], None]
"""Called with the targets scored so far by this process, and their mean nats."""
Positions = Sequence[int] | Mapping[int, Any]
"""Targets whose distributions are wanted, each in 1..N-1; a mapping also says which part of each (an index of it)."""
WHOLE = slice(None)


@dataclass(frozen=True, eq=False)
class Trace:
    """The result of an evaluation of N tokens."""

    nll: np.ndarray
    """(N-1,) float64 nats of the targets 1..N-1."""
    order: np.ndarray
    """(N-1,) int64 step at which each target was scored. Within one step no score feeds into another: targets of the
    same step depend on each other only as causal context, left to right. All zero: the predictor is fixed."""
    log_probs: dict[int, np.ndarray] = field(default_factory=dict)
    """By position of the target in the stream: (vocab_size,) natural log-probabilities, all known before the target."""
    updates: list[tuple[int, int, int, int, bool]] = field(default_factory=list)
    """Of an evaluator that learns: `Recorder.learned`'s arguments, in any order."""
    facts: dict[str, object] = field(default_factory=dict)
    """Facts that the evaluator reports (settings it chose, number of steps), as JSON values."""


class Evaluator(Protocol):
    def score(self, tokens: np.ndarray, positions: Sequence[int] = ()) -> Trace:
        """Score a stream from a fresh state.

        tokens: (N,) ids, documents beginning with BOS.
        positions: targets, each in 1..N-1, whose distributions `Trace.log_probs` shall hold.
        """
        ...
