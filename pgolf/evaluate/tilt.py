"""The token n-gram tilt: the odds of one hinted token are raised, and the whole distribution is normalized again.

The hint of a target is the token that followed its last `tilt_order - 1` tokens most often where the scored text held
them, if it did so in at least `tilt_threshold` of those places. With b = `tilt_boost`, h the hint and p the evaluator's
distribution,

    p'(v) = p(v) exp(b [v = h]) / (1 + p(h) (exp(b) - 1)),

which sums to one for every h. Challenge PR #1145 and #1514; #2135 keeps this expert alone, since the two others of
#1514 looked at the target. Three things differ from the published code: contexts are compared token by token, where its
keys of about 34 bits let different contexts share counts; the counts follow the order of scoring, where its hints
follow the text although documents are scored by length; and its first context begins with a token counted twice.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numba import njit

from pgolf.config.evaluate import EvaluateConfig
from pgolf.errors import CheckFailed
from pgolf.evaluate.evaluator import WHOLE, Evaluator, Positions, Trace
from pgolf.evaluate.ttt.methods import TttEvaluator

Array = Any  # np.ndarray, which numba types by itself


class Planned(Protocol):
    """An evaluator whose order of scoring is known before it scores."""

    def planned(self, tokens: np.ndarray) -> np.ndarray:
        """(N-1,) a step of each target, in the order of `Trace.order`; all zero: in stream order."""
        ...

    def score(self, tokens: np.ndarray, positions: Positions = ()) -> Trace: ...


def over(base: Planned, settings: EvaluateConfig) -> Evaluator:
    """The evaluator with the tilt over it where the settings turn it on."""
    return TiltEvaluator(base, settings) if settings.tilt_boost else base


@dataclass(frozen=True)
class TiltEvaluator:
    """Another evaluator's distributions, tilted toward the hints. What it learns at test time is not tilted."""

    base: Planned
    settings: EvaluateConfig

    def score(self, tokens: np.ndarray, positions: Sequence[int] = ()) -> Trace:
        """See `Evaluator.score`. The seconds for the hints are taken from the base evaluator's cap.

        Raises CheckFailed when the base evaluator scored in another order than it had planned.
        """
        started, base, boost = time.monotonic(), self.base, self.settings.tilt_boost
        sequence = np.argsort(base.planned(tokens), kind="stable")
        hints = hints_of(tokens, sequence, self.settings)
        if isinstance(base, TttEvaluator) and base.ttt.seconds:
            left = max(base.ttt.seconds - (time.monotonic() - started), 1e-3)
            base = replace(base, ttt=replace(base.ttt, seconds=left))
        places = np.flatnonzero(hints >= 0)
        hinted = hints[places]
        asked: dict[int, Any] = dict(zip((places + 1).tolist(), hinted[:, None].tolist(), strict=True))
        wanted = dict.fromkeys(positions, WHOLE)
        trace = base.score(tokens, asked | wanted)
        if (np.diff(trace.order[sequence]) < 0).any():
            raise CheckFailed("the text was scored in another order than the one in which the tilt's counts were made")
        held = trace.log_probs
        log_p = np.array(
            [held[p + 1][h if p + 1 in wanted else 0] for p, h in zip(places.tolist(), hinted.tolist(), strict=True)]
        )
        right, log_sums = hinted == tokens[places + 1], np.log1p(np.exp(log_p) * math.expm1(boost))
        nll = trace.nll.copy()
        nll[places] += log_sums - boost * right
        log_sum_at = dict(zip((places + 1).tolist(), log_sums.tolist(), strict=True))
        log_probs = {position: held[position] - log_sum_at.get(position, 0.0) for position in wanted}
        for position in log_probs.keys() & log_sum_at.keys():
            log_probs[position][hints[position - 1]] += boost
        facts = {"hinted": len(places), "right": int(right.sum()), "nats_gained": float((trace.nll - nll).sum())}
        order, updates = _in_sequence(sequence, trace)
        return Trace(nll, order, log_probs, updates, trace.facts | {"tilt": facts})


def _in_sequence(sequence: np.ndarray, trace: Trace) -> tuple[np.ndarray, list[tuple[int, int, int, int, bool]]]:
    """The order and updates of a trace when the counts learn from every single target: a step a target."""
    steps, order = trace.order[sequence], np.empty_like(sequence)
    order[sequence] = np.arange(len(sequence))
    updates = [(int(np.searchsorted(steps, s, "right")) - 1, a, b, n, each) for s, a, b, n, each in trace.updates]
    starts = np.flatnonzero(np.diff(sequence, prepend=-2) != 1)
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(sequence)], strict=True):
        updates.append((start, int(sequence[start]), int(sequence[end - 1]), end - start, True))
    return order, updates


def hints_of(tokens: np.ndarray, sequence: np.ndarray, settings: EvaluateConfig) -> np.ndarray:
    """(N-1,) int32 hint of each target, -1 for none; sequence: (N-1,) the targets in the order of scoring.

    A context counts if all of its tokens are scored before the target. Takes 50 to 100 bytes and about 0.7 microseconds
    a token on one core.
    """
    count = len(sequence)
    slots = 1 << max(10, math.ceil(math.log2(3.2 * count)))  # two entries a token at most, so under two thirds in use
    hints = np.full(count, -1, np.int32)
    width, entries = settings.tilt_order - 1, np.zeros((slots, 4), np.int32)
    _follow(np.ascontiguousarray(tokens), sequence, width, settings.tilt_threshold, entries, hints)
    return hints


@njit(cache=True, nogil=True)
def _find(entries: Array, tokens: Array, start: int, length: int, sign: int) -> int:
    """The slot of the tokens start .. start + length - 1, or the free one for them.

    An entry's first number is 0 where the slot is free, else the place of the same tokens in the stream, counted from
    1: positive for a context, negative for a context with the token after it.
    """
    mixed = length
    for i in range(length):
        mixed = (mixed ^ (tokens[start + i] + 1)) * 0x1E3779B97F4A7C15  # wrapped at 64 bits
        mixed ^= (mixed >> 29) & 0x7FFFFFFFF
    slot = mixed & (len(entries) - 1)
    while entries[slot, 0] != 0:
        place = entries[slot, 0] * sign - 1
        if place >= 0:
            same = 0
            while same < length and tokens[place + same] == tokens[start + same]:
                same += 1
            if same == length:
                break
        slot = (slot + 1) & (len(entries) - 1)
    return slot


@njit(cache=True, nogil=True)
def _follow(tokens: Array, sequence: Array, width: int, threshold: float, entries: Array, hints: Array) -> None:
    """Go through the targets: hint each, then count it. A context's entry holds (place, times, top token's times, top
    token), one with a following token (place, times)."""
    scored = np.zeros(len(tokens), np.bool_)
    scored[0] = True
    for target in sequence:
        at = target + 1
        start = at - width
        usable = start >= 0
        for i in range(max(start, 0), at):
            usable &= scored[i]
        if usable:
            context = entries[_find(entries, tokens, start, width, 1)]
            if context[1] and context[2] / context[1] >= threshold:
                hints[target] = context[3]
            context[0], context[1] = start + 1, context[1] + 1  # before the next look-up, which may want this slot
            pair = entries[_find(entries, tokens, start, width + 1, -1)]
            pair[0], pair[1] = -(start + 1), pair[1] + 1
            if pair[1] > context[2]:
                context[2], context[3] = pair[1], tokens[at]
        scored[at] = True
