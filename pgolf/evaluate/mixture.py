"""A model mixed with causal statistics of the tokens already scored: valid by construction, reported apart.

Three experts give a whole, normalized distribution each: the model, an n-gram back-off model over everything scored
so far, and one over the current document alone (interpolated absolute discounting, Chen and Goodman 1999). Their
mixture is convex, so it sums to one whatever the weights are. The weights belong to how long a context each n-gram
model found, which is known before the target, and are learned online by exponentiated gradient from past targets
only. Unlike the hashed caches of the field (challenge issue #886, PR #978) no expert is evaluated for the target alone
and nothing collides: contexts are exact.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from pgolf.errors import PgolfError
from pgolf.evaluate.evaluator import Evaluator, Trace

GLOBAL_ORDER = 4
"""Longest context, in tokens, of the statistics over the whole stream."""
DOCUMENT_ORDER = 3
DISCOUNT = 0.5  # with the rate chosen on held-out train text; the usual 0.75 is for larger texts
RATE = 0.005  # of the mixture's weights
START = (0.96, 0.02, 0.02)  # weights before anything was seen: model, stream, document

SECONDS_A_TOKEN, BYTES_A_TOKEN = 4e-6, 200
"""Cost on one core: 2.6 microseconds in 335,000 tokens, 3.1 in 4 million, and sorting grows by n log n
(benchmarks/results/evaluation.md)."""
LIMIT_SECONDS = 600.0
"""The challenge's limit for an evaluation."""

FLOOR = 1e-4
"""Smallest weight before an update, so that an expert can come back."""
Array = Any  # np.ndarray, which numba types by itself


def check(tokens: int) -> None:
    """Raises PgolfError, before anything is scored, for a text whose mixture alone passes the limit."""
    seconds, gigabytes = tokens * SECONDS_A_TOKEN, tokens * BYTES_A_TOKEN / 1e9
    if seconds > LIMIT_SECONDS:
        raise PgolfError(
            f"the mixture of {tokens:,} tokens takes about {seconds:,.0f} s and {gigabytes:,.0f} GB on one core, after "
            f"the scoring and beyond the challenge's {LIMIT_SECONDS:.0f} s; score without evaluate.mixture"
        )


class _History(NamedTuple):
    """Interpolated back-off over contexts of 0 to `order` tokens.

    With c the count of a token after a context, C the sum of the counts, n the number of different tokens seen, the
    probability is `(max(c - d, 0) + d n p_shorter) / C`; the empty context backs off to the uniform distribution.
    Contexts, and contexts with the token after them, are numbers, the same for the same tokens: the whole text is
    numbered by sorting, which takes less time and memory than tables of hashes. The counts are of scored tokens alone.
    """

    contexts: Array  # (N, order + 1) int32, by the position of the token that follows; -1: not in this document
    pairs: Array  # (N, order + 1) int32, contexts with the token that follows
    totals: Array  # by context
    different: Array  # by context, tokens that have followed it
    counts: Array  # by pair


@dataclass(frozen=True)
class MixtureEvaluator:
    """Another evaluator's distribution mixed with the statistics of the tokens scored before."""

    base: Evaluator | None
    """None where only `mix` is used."""
    vocab_size: int
    bos_id: int

    def score(self, tokens: np.ndarray, positions: Sequence[int] = ()) -> Trace:
        """See `Evaluator.score`."""
        assert self.base is not None, "there is nothing to score with"
        return self.mix(tokens, self.base.score(tokens, positions))

    def mix(self, tokens: np.ndarray, trace: Trace) -> Trace:
        """The mixture's trace from the base evaluator's.

        Raises PgolfError when that did not score in stream order: the mixture learns from every token before.
        """
        if (np.diff(trace.order) < 0).any():
            raise PgolfError(
                "the mixture needs an evaluation in stream order; lora and phased take documents by length"
            )
        ids = tokens.astype(np.int64)
        begins, documents = _documents(ids, self.bos_id)
        stream = _history(ids, begins, np.zeros_like(ids), GLOBAL_ORDER)
        begins[0] = 1  # the first token was not scored; the stream knows it, a document begins after it
        document = _history(ids, begins, documents, DOCUMENT_ORDER)
        wanted = np.array(sorted(trace.log_probs), np.int64)
        weights = np.tile(START, (GLOBAL_ORDER + 2, DOCUMENT_ORDER + 2, 1))
        mixed, held = _mix(np.exp(-trace.nll), stream, document, 1.0 / self.vocab_size, weights, wanted)
        log_probs = {}
        for position, (model, *others) in zip(wanted.tolist(), held.tolist(), strict=True):
            vector = model * np.exp(trace.log_probs[position])
            for weight, history in zip(others, (stream, document), strict=True):
                vector = vector + weight * _distribution(history, ids, position, self.vocab_size)
            log_probs[position] = np.log(vector)
        return replace(trace, nll=mixed, order=np.arange(len(mixed), dtype=np.int64), log_probs=log_probs)


def _documents(ids: np.ndarray, bos_id: int) -> tuple[np.ndarray, np.ndarray]:
    """(N,) where the document before each position begins, and its number; nothing before a document is a context."""
    first = ids == bos_id
    begins, numbers = np.zeros_like(ids), np.zeros_like(ids)
    begins[1:] = np.maximum.accumulate(np.where(first, np.arange(len(ids)), 0))[:-1]
    numbers[1:] = np.cumsum(first)[:-1]
    return begins, numbers


def _history(ids: np.ndarray, begins: np.ndarray, groups: np.ndarray, order: int) -> _History:
    """Number the contexts of a text. begins: (N,) first position that a context may hold, one later than the position
    itself: it has none, not even the empty one; groups: (N,) contexts in different groups are different."""
    contexts, pairs = (np.full((len(ids), order + 1), -1, np.int32) for _ in range(2))
    rows = np.flatnonzero(begins <= np.arange(len(ids)))
    keys, size, pair_size = groups[rows], 0, 0
    for k in range(order + 1):
        if k:
            rows = rows[rows - k >= begins[rows]]
            keys = _joined(contexts[rows, k - 1], ids[rows - k])
        size = _number(contexts, rows, k, keys, size)
        pair_size = _number(pairs, rows, k, _joined(contexts[rows, k], ids[rows]), pair_size)
    return _History(contexts, pairs, np.zeros(size, np.int32), np.zeros(size, np.int32), np.zeros(pair_size, np.int32))


def _joined(numbers: np.ndarray, ids: np.ndarray) -> np.ndarray:
    return numbers.astype(np.int64) << 16 | ids


def _number(table: np.ndarray, rows: np.ndarray, column: int, keys: np.ndarray, first: int) -> int:
    """Write the number of each key, from `first` on; returns the first one that is free."""
    found, numbers = np.unique(keys, return_inverse=True)
    table[rows, column] = first + numbers
    return first + len(found)


def _distribution(history: _History, ids: np.ndarray, position: int, vocab_size: int) -> np.ndarray:
    """The whole distribution of the token at a position, (vocab_size,) float64, counted once more from the tokens
    before it; agrees with `_probability` for every token."""
    p = np.full(vocab_size, 1.0 / vocab_size)
    for k, context in enumerate(history.contexts[position].tolist()):
        followed = ids[:position][history.contexts[:position, k] == context]
        if context < 0 or not len(followed):
            break
        counts = np.bincount(followed, minlength=vocab_size)
        p = (np.maximum(counts - DISCOUNT, 0.0) + DISCOUNT * np.count_nonzero(counts) * p) / len(followed)
    return p


@njit(cache=True, nogil=True, error_model="numpy")
def _mix(
    model: Array, stream: _History, document: _History, uniform: float, weights: Array, wanted: Array
) -> tuple[Array, Array]:
    """Nats of each token but the first under the mixture, and the weights at the positions `wanted`, in order.

    model: (N-1,) its probabilities; weights: (stream matches, document matches, experts), changed.
    """
    mixed, kept, next_kept = np.empty(len(model)), np.empty((len(wanted), 3)), 0
    _learn(stream, 0)
    for position in range(1, len(model) + 1):
        p_stream, seen_stream = _probability(stream, position, uniform)
        p_document, seen_document = _probability(document, position, uniform)
        experts = (model[position - 1], p_stream, p_document)
        held = weights[seen_stream, seen_document]
        if next_kept < len(wanted) and wanted[next_kept] == position:
            kept[next_kept] = held
            next_kept += 1
        p = held[0] * experts[0] + held[1] * experts[1] + held[2] * experts[2]
        mixed[position - 1] = -math.log(p)
        # Exponentiated gradient on the log loss: each weight grows with its expert's share of the mixture.
        total = 0.0
        for expert in range(3):
            held[expert] = max(held[expert], FLOOR) * math.exp(RATE * experts[expert] / p)
            total += held[expert]
        held /= total
        _learn(stream, position)
        _learn(document, position)
    return mixed, kept


@njit(cache=True, nogil=True, error_model="numpy")
def _probability(history: _History, position: int, uniform: float) -> tuple[float, int]:
    """Probability of the token at a position, and how many context lengths have been seen, 0 to order + 1."""
    p, matched = uniform, 0
    for k in range(history.contexts.shape[1]):
        context = history.contexts[position, k]
        if context < 0 or history.totals[context] == 0:
            break
        count = history.counts[history.pairs[position, k]]
        p = (max(count - DISCOUNT, 0.0) + DISCOUNT * history.different[context] * p) / history.totals[context]
        matched += 1
    return p, matched


@njit(cache=True, nogil=True, error_model="numpy")
def _learn(history: _History, position: int) -> None:
    for k in range(history.contexts.shape[1]):
        context, pair = history.contexts[position, k], history.pairs[position, k]
        if context < 0:
            break
        history.totals[context] += 1
        history.different[context] += history.counts[pair] == 0
        history.counts[pair] += 1
