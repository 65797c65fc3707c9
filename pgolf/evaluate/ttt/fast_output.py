"""Fast weights on the output: biases on the logits that learn from every single token as soon as it is scored.

A bias vector belongs to every context of the last k tokens, k = 0 to 3, zero when it is first met. The logits get the
vectors of the current contexts added, each times a scale; after the token is scored, vectors and scales descend its
loss by AdaGrad, so that a word counts fully the first time it comes and little the tenth. Those of the document are
forgotten with it, those of the stream stay. The document's empty context is half an exception: its biases are
forgotten, the sums of their squared gradients are not, so that a token that is common in all documents moves little in
the next one and a rare one much. Vectors are scaled by the count of the context, so that what a frequent context is
worth is learned as well. But for the empty context a vector is held where a token has followed only: elsewhere it
stays zero.

It is an output layer over one-hot contexts, trained at test time: a softmax over the vocabulary as before, reading
nothing but logits and scored tokens; compiled with numba it takes 29 microseconds a token at 8,192 pieces. The
adapters per document of record 2026-04-17 (PR #1530) are its slow relative, the dynamic bias and cache of arXiv
1612.04426 its oldest one.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from pgolf.config.ttt import TttConfig

FLOOR = 1.0
"""Added to the squared gradients; this, the scales' rate and the rates were chosen on held-out train text."""
SCALE_RATE = 0.2
SCALE_FLOOR = 1e-3
BUCKETS = 10
"""Kinds of contexts by times met: 0, 1, 2 to 3, 4 to 7, ..."""
ROOM = 1 << 24
"""Most weights held; when all are used, new contexts are not learned."""
Array = Any  # np.ndarray, which numba types by itself

_MAGIC = 1.5 * 2.0**52  # added to a float64, it leaves the nearest integer in the low bits
_LOG2E, _LN2_HIGH, _LN2_LOW = math.log2(math.e), 0.693147180369123816490, 1.90821492927058770002e-10  # fdlibm's split
_LEAST = -700.0  # exp of less is 1e-304 here


class _Table(NamedTuple):
    """Biases of contexts of several lengths. A context's weights are a linked list; those of the empty one an array."""

    rates: Array  # by length from the shortest
    scales: Array  # (lengths, BUCKETS)
    scale_squares: Array
    dense: Array  # (2, vocab_size) weights and squared gradients of the empty context
    keys: Array  # (slots,) int64, 0: free; open addressing
    heads: Array  # (slots,) int64, the first weight of the list, -1: none
    met: Array  # (slots,) int64
    used: Array  # (2,) slots and weights in use
    tokens: Array  # (room,) of each weight
    following: Array  # (room,) next weight of the list
    values: Array  # (2, room) weights and squared gradients


class FastOutput:
    """The biases along a stream. What they hold grows with it, by at most one weight per token and context length."""

    def __init__(self, vocab_size: int, bos_id: int, settings: TttConfig) -> None:
        self._bos_id = bos_id
        self._document = _table(vocab_size, settings.output_lr)
        self._stream = _table(vocab_size, settings.output_stream_lr)
        self._recent = np.zeros(4, np.int64)  # how many of the last tokens count, then those, the latest first
        self._work = np.empty((3, vocab_size))
        self._contexts = np.empty((2, 4), np.int64), np.zeros((2, 4), np.int64)  # slots and kinds of the last `predict`

    def score(
        self, previous: np.ndarray, targets: np.ndarray, logits: np.ndarray, wanted: set[int], _: object = None
    ) -> tuple[np.ndarray, np.ndarray, dict[int, np.ndarray]]:
        """Score a stretch of the stream token by token, learning after each.

        previous, targets: (n,) ids, the token before each target and the target; logits: (n, vocab_size) float32;
        wanted: rows whose distributions are returned; the last is for `context_mixing`. Returns (n,) float64 nats, the
        gradients of their sum by the logits, and log-probabilities by row.
        """
        count = len(targets)
        self._document, self._stream = _grown(self._document, count), _grown(self._stream, count)
        nll, slopes = np.empty(count), np.empty_like(logits)
        rows = {row: at for at, row in enumerate(sorted(wanted))}
        places = np.array([rows.get(row, -1) for row in range(count)], dtype=np.int64)
        kept = np.empty((len(rows), logits.shape[1]))
        _score(
            previous.astype(np.int64), targets.astype(np.int64), logits, self._bos_id, self._document, self._stream,
            self._recent, nll, slopes, places, kept,
        )  # fmt: skip
        return nll, slopes, {row: kept[at] for row, at in rows.items()}

    def predict(self, previous: int, logits: np.ndarray) -> np.ndarray:
        """(vocab_size,) float64 probabilities after the token `previous`; logits: (vocab_size,) float32.

        For one token at a time, when it is not known yet: `learn` must follow with the token that came.
        """
        self._document, self._stream = _grown(self._document, 1), _grown(self._stream, 1)
        _predict(
            previous, logits, self._bos_id, self._document, self._stream, self._recent, self._work, *self._contexts
        )
        return self._work[1].copy()

    def learn(self, target: int) -> np.ndarray:
        """Learn the token that came; (vocab_size,) gradient of its loss by the logits."""
        _adapt(target, self._document, self._stream, self._work, *self._contexts)
        return self._work[1].copy()


def _table(vocab_size: int, rates: Sequence[float], slots: int = 1024, room: int = 4096) -> _Table:
    lengths = len(rates)
    return _Table(
        np.array(rates, dtype=np.float64), np.ones((lengths, BUCKETS)), np.full((lengths, BUCKETS), SCALE_FLOOR),
        np.zeros((2, vocab_size)), np.zeros(slots, np.int64), np.full(slots, -1, np.int64), np.zeros(slots, np.int64),
        np.zeros(2, np.int64), np.zeros(room, np.int64), np.zeros(room, np.int64), np.zeros((2, room)),
    )  # fmt: skip


def _grown(table: _Table, count: int) -> _Table:
    """The same table with room for `count` tokens more: at most half of the slots in use."""
    more = count * max(len(table.rates), 1)
    slots, room = len(table.keys), len(table.tokens)
    if 2 * (table.used[0] + more) > slots:
        while 2 * (table.used[0] + more) > slots:
            slots *= 2
        moved = table._replace(
            keys=np.zeros(slots, np.int64), heads=np.full(slots, -1, np.int64), met=np.zeros(slots, np.int64)
        )
        _rehash(table, moved)
        table = moved
    if table.used[1] + more > room and room < ROOM:
        room = min(ROOM, max(2 * room, int(table.used[1]) + more))
        values = np.zeros((2, room))
        values[:, : table.values.shape[1]] = table.values
        tokens, following = np.resize(table.tokens, room), np.resize(table.following, room)
        table = table._replace(tokens=tokens, following=following, values=values)
    return table


@njit(cache=True, nogil=True, error_model="numpy")
def _slot(keys: Array, key: int) -> int:
    """The slot of a key, or the free slot for it."""
    mask = len(keys) - 1
    mixed = key * 0x1E3779B97F4A7C15  # Fibonacci hashing, wrapped at 64 bits
    at = (mixed ^ (mixed >> 29)) & mask
    while keys[at] != 0 and keys[at] != key:
        at = (at + 1) & mask
    return at


@njit(cache=True, nogil=True, error_model="numpy")
def _rehash(table: Array, moved: Array) -> None:
    for old in range(len(table.keys)):
        if table.keys[old]:
            at = _slot(moved.keys, table.keys[old])
            moved.keys[at], moved.heads[at], moved.met[at] = table.keys[old], table.heads[old], table.met[old]


@njit(cache=True, nogil=True, error_model="numpy")
def _exp(x: Array, high: float, out: Array, scratch: Array) -> None:
    """out = e^(x - high), within 1e-15 relative, x <= high: written so that LLVM vectorizes it."""
    for i in range(len(x)):
        z = max(x[i] - high, _LEAST)
        scratch[i] = z * _LOG2E + _MAGIC
        n = scratch[i] - _MAGIC
        r = (z - n * _LN2_HIGH) - n * _LN2_LOW
        p = 1 / 39916800 * r + 1 / 3628800
        p = p * r + 1 / 362880
        p = p * r + 1 / 40320
        p = p * r + 1 / 5040
        p = p * r + 1 / 720
        p = p * r + 1 / 120
        p = p * r + 1 / 24
        p = p * r + 1 / 6
        p = p * r + 0.5
        p = p * r + 1.0
        out[i] = p * r + 1.0
    bits, powers = out.view(np.int64), scratch.view(np.int64)
    for i in range(len(x)):
        bits[i] += powers[i] << 52


@njit(cache=True, nogil=True, error_model="numpy", fastmath=True)
def _sum(x: Array) -> float:
    total = 0.0
    for i in range(len(x)):
        total += x[i]
    return total


@njit(cache=True, nogil=True, error_model="numpy", fastmath=True)
def _highest(x: Array) -> float:
    a = b = c = d = x[0]  # four chains: one maximum waits for the one before
    even = len(x) // 4 * 4
    for i in range(0, even, 4):
        a = max(a, x[i])
        b = max(b, x[i + 1])
        c = max(c, x[i + 2])
        d = max(d, x[i + 3])
    for i in range(even, len(x)):
        a = max(a, x[i])
    return max(max(a, b), max(c, d))


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract"})
def _learn_dense(weights: Array, squares: Array, slope: Array, rate: float) -> float:
    """One AdaGrad step on every weight of the empty context. Returns the gradient by their scale."""
    down = 0.0
    for i in range(len(slope)):
        g = slope[i]
        down += g * weights[i]
        squares[i] += g * g
        weights[i] -= rate * g / math.sqrt(squares[i] + FLOOR)
    return down


@njit(cache=True, nogil=True, error_model="numpy")
def _add(z: Array, logits: Array, weights: Array, scale: float) -> None:
    for i in range(len(z)):
        z[i] = logits[i] + scale * weights[i]


@njit(cache=True, nogil=True, error_model="numpy")
def _look_up(table: Array, shortest: int, recent: Array, logits: Array, z: Array, slots: Array, kinds: Array) -> None:
    """Add the scaled biases of the last tokens' contexts to z; write down where they are and how often met.

    With the empty context, whose weights are dense, z is set to the logits first.
    """
    for number in range(len(table.rates)):
        length = number + shortest
        slots[number] = -1
        if length > recent[0]:
            continue
        key = length + 1
        for back in range(length):
            key = (key << 16) | recent[1 + back]
        at = _slot(table.keys, key)
        if table.keys[at] == 0:
            table.keys[at] = key
            table.used[0] += 1
        kind, times = 0, table.met[at]
        while times:
            kind += 1
            times >>= 1
        slots[number], kinds[number] = at, min(kind, BUCKETS - 1)
        scale = table.scales[number, kinds[number]]
        if length == 0:
            _add(z, logits, table.dense[0], scale)
        place = table.heads[at]
        while place >= 0:
            z[table.tokens[place]] += scale * table.values[0, place]
            place = table.following[place]


@njit(cache=True, nogil=True, error_model="numpy")
def _learn(table: Array, shortest: int, slope: Array, target: int, slots: Array, kinds: Array) -> None:
    """Descend the loss of the token that came; slope: its gradient by the logits."""
    for number in range(len(table.rates)):
        at, kind, rate = slots[number], kinds[number], table.rates[number]
        if at < 0:
            continue
        known, down = number + shortest == 0, 0.0
        if known:
            down = _learn_dense(table.dense[0], table.dense[1], slope, rate)
        place = table.heads[at]
        while place >= 0:
            token = table.tokens[place]
            g = slope[token]
            known = known or token == target
            down += g * table.values[0, place]
            table.values[1, place] += g * g
            table.values[0, place] -= rate * g / math.sqrt(table.values[1, place] + FLOOR)
            place = table.following[place]
        table.scale_squares[number, kind] += down * down
        table.scales[number, kind] -= SCALE_RATE * down / math.sqrt(table.scale_squares[number, kind])
        table.met[at] += 1
        if not known and table.used[1] < len(table.tokens):
            place, g = table.used[1], slope[target]
            table.used[1] += 1
            table.tokens[place], table.following[place] = target, table.heads[at]
            table.values[0, place], table.values[1, place] = -rate * g / math.sqrt(g * g + FLOOR), g * g
            table.heads[at] = place


@njit(cache=True, nogil=True, error_model="numpy")
def _predict(
    previous: int, logits: Array, bos_id: int, document: Array, stream: Array, recent: Array, work: Array,
    slots: Array, kinds: Array,
) -> tuple[float, float]:  # fmt: skip
    """The distribution after a token into work[1] and its logits into work[0]; the highest logit and log of the sum."""
    if previous == bos_id:
        document.keys[:], document.heads[:], document.met[:], document.used[:] = 0, -1, 0, 0
        document.dense[0] = 0.0
        recent[0] = 0
    recent[3], recent[2], recent[1] = recent[2], recent[1], previous
    recent[0] = min(recent[0] + 1, 3)
    z, p = work[0], work[1]
    if len(document.rates) == 0:
        z[:] = logits
    _look_up(document, 0, recent, logits, z, slots[0], kinds[0])
    _look_up(stream, 1, recent, logits, z, slots[1], kinds[1])
    high = _highest(z)
    _exp(z, high, p, work[2])
    total = _sum(p)
    share = 1.0 / total
    for i in range(len(p)):
        p[i] *= share
    return high, math.log(total)


@njit(cache=True, nogil=True, error_model="numpy")
def _adapt(target: int, document: Array, stream: Array, work: Array, slots: Array, kinds: Array) -> None:
    """Learn the token that came after `_predict`; work[1] becomes the gradient by the logits."""
    p = work[1]
    p[target] -= 1.0
    _learn(document, 0, p, target, slots[0], kinds[0])
    _learn(stream, 1, p, target, slots[1], kinds[1])


@njit(cache=True, nogil=True, error_model="numpy")
def _score(
    previous: Array, targets: Array, logits: Array, bos_id: int, document: Array, stream: Array, recent: Array,
    nll: Array, slopes: Array, places: Array, kept: Array,
) -> None:  # fmt: skip
    """The loop of `FastOutput.score`."""
    size = logits.shape[1]
    work = np.empty((3, size))
    slots, kinds = np.empty((2, 4), np.int64), np.zeros((2, 4), np.int64)
    for row in range(len(targets)):
        high, log_total = _predict(previous[row], logits[row], bos_id, document, stream, recent, work, slots, kinds)
        nll[row] = log_total + high - work[0, targets[row]]
        if places[row] >= 0:
            for i in range(size):
                kept[places[row], i] = work[0, i] - high - log_total
        _adapt(targets[row], document, stream, work, slots, kinds)
        for i in range(size):
            slopes[row, i] = work[1, i]
