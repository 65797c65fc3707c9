"""Context mixing over the model: decisions down a tree over the tokens, mixed in the logistic domain.

A token is a path in a binary tree (`token_tree`), its probability the product of the decisions on it, so the
distribution sums to one by construction. Every decision has five inputs, as log odds:

- the model with its fast output weights, and the model as it was trained over fewer tokens, so that the two differ;
- for the stream and for the document, a back-off model over exact contexts of the last tokens (absolute discounting,
  Chen and Goodman 1999) whose shortest context backs off to the adapted model's distribution, not to a uniform one:
  with c the count of a branch's tokens after a context, n the number of different ones among them, C and N those of
  the whole context, its mass is `(c - d n + d N shorter) / C`. Their inputs are differences to the model's log odds;
- a constant.

Four mixers weigh the inputs, each with a set of weights chosen by what is known before the token: the node; the longest
contexts found; the depth and the model's log odds; the token before. The decision's log odds are the mean of the four,
each of which descends its own loss once the token is scored (logistic mixing as in Mahoney's PAQ; a fifth mixer over
the four lost 0.0008 BPB). Contexts are the tokens themselves, so that no two share counts.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit

from pgolf.evaluate.sliding import scored_logits
from pgolf.evaluate.ttt import token_tree
from pgolf.evaluate.ttt.fast_output import FastOutput, _slot
from pgolf.evaluate.ttt.task import Task
from pgolf.evaluate.ttt.token_tree import Tree
from pgolf.evaluate.windows import Window
from pgolf.model.gpt import GPT

LENGTHS = 3
"""Longest context in tokens; the document's contexts begin with the empty one."""
SHORTER = 4
"""The trained model sees the last quarter of the context."""
DISCOUNT = 0.5  # this and the following were chosen on held-out train text
START = (0.8, 0.2, 0.1, 0.1, 0.0)  # weights of the inputs before anything was seen, in the order above
CONSTANT = 0.3  # the last input
WARM, COOL = 8.0, 0.1
"""The rate of a set that was used n times is `rate (1 + WARM / (1 + COOL n))`."""
LARGEST, FARTHEST = 12.0, 14.0
"""Bounds of the inputs' log odds, and of the mixed ones."""
SMALLEST = 1e-12
DEPTHS, STEPS = 16, 24
"""Depths told apart, and steps of half a nat of the model's log odds."""
Array = Any  # np.ndarray, which numba types by itself


class _Counts(NamedTuple):
    """What followed each context: a linked list of tokens, open addressing to find it."""

    keys: Array  # (slots,) int64, 0: free
    heads: Array  # (slots,) int64, the first follower, -1: none
    totals: Array  # (slots,) float64
    used: Array  # (2,) slots and followers in use
    leaves: Array  # (room,) place of each follower in the tree
    following: Array  # (room,) next follower of the same context
    counts: Array  # (room,) float64


class _Mixers(NamedTuple):
    nodes: Array  # (vocab_size - 1, 5)
    places: Array  # (vocab_size,)
    by_node: Array  # (vocab_size - 1, 5) weights
    by_length: Array
    by_odds: Array
    by_token: Array
    times: Array  # (4, most sets) how often each set was used


class ContextMixing:
    """The mixers and counts along a stream. The counts grow with it, by at most six followers a token."""

    def __init__(self, bos_id: int, rate: float, tree: Tree) -> None:
        size = len(tree.places)
        self._bos_id, self._rate = bos_id, rate
        sets = (size - 1, (LENGTHS + 1) * (LENGTHS + 2), DEPTHS * STEPS, size)
        by_node, by_length, by_odds, by_token = (np.tile(np.array(START), (count, 1)) for count in sets)
        times = np.zeros((4, max(sets)))
        self._mixers = _Mixers(tree.nodes, tree.places, by_node, by_length, by_odds, by_token, times)
        self._stream, self._document = _counts(), _counts()
        self._recent = np.zeros(
            LENGTHS + 1, np.int64
        )  # how many of the last tokens count, then those, the latest first

    def score(
        self, previous: np.ndarray, targets: np.ndarray, models: np.ndarray, wanted: set[int]
    ) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        """Score a stretch of the stream token by token, learning after each.

        previous, targets: (n,) ids, the token before each target and the target; models: (2, n, vocab_size)
        probabilities of the adapted and of the trained model; wanted: rows whose distributions are returned.
        Returns (n,) float64 nats, and log-probabilities by row.
        """
        count = len(targets)
        self._stream, self._document = (_grown(table, count) for table in (self._stream, self._document))
        rows = {row: at for at, row in enumerate(sorted(wanted))}
        places = np.array([rows.get(row, -1) for row in range(count)], dtype=np.int64)
        nll, kept = np.empty(count), np.empty((len(rows), models.shape[2]))
        _score(
            previous.astype(np.int64), targets.astype(np.int64), models.astype(np.float64), self._bos_id, self._rate,
            self._mixers, self._stream, self._document, self._recent, nll, places, kept,
        )  # fmt: skip
        return nll, {row: kept[at] for row, at in rows.items()}


@dataclass(frozen=True, eq=False)
class OverOutput:
    """The mixing over a model that learns with fast output weights."""

    task: Task
    output: FastOutput
    trained: GPT
    """The model before it learns."""
    contexts: ContextMixing

    def score(
        self, previous: np.ndarray, targets: np.ndarray, logits: np.ndarray, wanted: set[int],
        batch: Sequence[Window],
    ) -> tuple[np.ndarray, np.ndarray, dict[int, np.ndarray]]:  # fmt: skip
        """As `FastOutput.score`, whose gradient is returned; batch: the windows that the logits come from."""
        _, slopes, found = self.output.score(previous, targets, logits, set(range(len(targets))))
        adapted = np.exp(np.stack([found[row] for row in range(len(targets))]))
        with torch.no_grad():
            short = [part for window in batch for part in shorter(window, self.task.settings.seq_len // SHORTER)]
            logits_trained = scored_logits(self.trained, self.task.tokens, short, self.task.device)
            trained = torch.softmax(logits_trained.double(), -1).cpu().numpy()
        nll, kept = self.contexts.score(previous, targets, np.stack([adapted, trained]), wanted)
        return nll, slopes, kept


def shorter(window: Window, most: int) -> list[Window]:
    """Windows of at most `most` tokens that score the same targets, the later half of each once there is more."""
    first, parts = window.stop - window.scored, []
    while first < window.stop:
        stop = min(window.stop, max(first + max(1, most // 2), window.start + most))
        parts.append(Window(max(window.start, stop - most), stop, stop - first))
        first = stop
    return parts


def over(task: Task, output: FastOutput) -> OverOutput:
    """The mixing for an evaluation whose model has not learned yet."""
    trained = copy.deepcopy(task.model)
    return OverOutput(task, output, trained, ContextMixing(task.bos_id, task.ttt.mixing_lr, token_tree.of(trained)))


def _counts(slots: int = 1024, room: int = 1024) -> _Counts:
    return _Counts(
        np.zeros(slots, np.int64), np.full(slots, -1, np.int64), np.zeros(slots), np.zeros(2, np.int64),
        np.zeros(room, np.int64), np.zeros(room, np.int64), np.zeros(room),
    )  # fmt: skip


def _grown(table: _Counts, tokens: int) -> _Counts:
    """The same counts with room for more tokens: at most half of the slots in use."""
    more, slots, room = tokens * (LENGTHS + 1), len(table.keys), len(table.leaves)
    if table.used[1] + more > room:
        room = max(2 * room, int(table.used[1]) + more)
        table = table._replace(
            **{name: np.resize(getattr(table, name), room) for name in ("leaves", "following", "counts")}
        )
    if 2 * (table.used[0] + more) > slots:
        while 2 * (table.used[0] + more) > slots:
            slots *= 2
        moved = _counts(slots)._replace(
            used=table.used, leaves=table.leaves, following=table.following, counts=table.counts
        )
        _rehash(table, moved)
        table = moved
    return table


@njit(cache=True, nogil=True, error_model="numpy")
def _rehash(table: Array, moved: Array) -> None:
    for old in range(len(table.keys)):
        if table.keys[old]:
            at = _slot(moved.keys, table.keys[old])
            moved.keys[at], moved.heads[at], moved.totals[at] = table.keys[old], table.heads[old], table.totals[old]


@njit(cache=True, nogil=True, error_model="numpy")
def _find(table: Array, shortest: int, recent: Array, slots: Array) -> int:
    """Slots of the last tokens' contexts by length, shortest first, -1 for none. Returns the length of the longest one
    that was met before, counted from `shortest`: 0 for none."""
    longest = 0
    for number in range(LENGTHS + 1 - shortest):
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
        slots[number] = at
        if table.totals[at] > 0:
            longest = number + 1
    return longest


@njit(cache=True, nogil=True, error_model="numpy")
def _open(table: Array, slots: Array, leaves: Array, counts: Array, sizes: Array, whole: Array) -> None:
    """Copy the followers of the contexts; whole: (contexts, 2) their total and their number."""
    for number in range(len(slots)):
        sizes[number] = 0
        if slots[number] < 0:
            continue
        at = table.heads[slots[number]]
        while at >= 0:
            leaves[number, sizes[number]], counts[number, sizes[number]] = table.leaves[at], table.counts[at]
            sizes[number] += 1
            at = table.following[at]
        whole[number, 0], whole[number, 1] = table.totals[slots[number]], sizes[number]


@njit(cache=True, nogil=True, error_model="numpy")
def _odds(right: float, left: float) -> float:
    return min(max(np.log((right + SMALLEST) / (left + SMALLEST)), -LARGEST), LARGEST)


@njit(cache=True, nogil=True, error_model="numpy")
def _backed_off(
    node: Array, left: float, right: float, leaves: Array, counts: Array, sizes: Array, whole: Array
) -> float:
    """Log odds of a decision by the back-off model, whose shortest context backs off to the masses left and right."""
    for number in range(len(sizes)):
        if whole[number, 0] <= 0:
            continue
        a, b = 0.0, 0.0
        for at in range(sizes[number]):
            place = leaves[number, at]
            if place >= node[1] and place < node[2]:
                b += counts[number, at] - DISCOUNT
            elif place >= node[0] and place < node[1]:
                a += counts[number, at] - DISCOUNT
        share = DISCOUNT * whole[number, 1]
        left, right = (a + share * left) / whole[number, 0], (b + share * right) / whole[number, 0]
    return _odds(right, left)


@njit(cache=True, nogil=True, error_model="numpy")
def _squash(z: float) -> float:
    return 1.0 / (1.0 + np.exp(-z))


@njit(cache=True, nogil=True, error_model="numpy")
def _mix(weights: Array, inputs: Array) -> float:
    z = 0.0
    for i in range(len(inputs)):
        z += weights[i] * inputs[i]
    return min(max(z, -FARTHEST), FARTHEST)


@njit(cache=True, nogil=True, error_model="numpy")
def _decide(
    number: int, depth: int, sums: Array, mixers: Array, met: int, previous: int, lists: Array, work: Array,
    chosen: Array,
) -> float:  # fmt: skip
    """Log odds of the right branch of a node; inputs and the four mixers' outputs into work, their sets into chosen."""
    node = mixers.nodes[number]
    first, middle, end = node[0], node[1], node[2]
    left, right = sums[0, middle] - sums[0, first], sums[0, end] - sums[0, middle]
    x, mixed = work[0], work[1]
    x[0] = _odds(right, left)
    x[1] = _odds(sums[1, end] - sums[1, middle], sums[1, middle] - sums[1, first])
    x[2] = _backed_off(node, left, right, lists[0][0], lists[0][1], lists[0][2], lists[0][3]) - x[0]
    x[3] = _backed_off(node, left, right, lists[1][0], lists[1][1], lists[1][2], lists[1][3]) - x[0]
    x[4] = CONSTANT
    step = min(int(2 * (min(max(x[0], -6.0), 6.0) + 6.0)), STEPS - 1)
    chosen[0], chosen[1], chosen[2], chosen[3] = number, met, min(depth, DEPTHS - 1) * STEPS + step, previous
    mixed[0] = _mix(mixers.by_node[number], x)
    mixed[1] = _mix(mixers.by_length[met], x)
    mixed[2] = _mix(mixers.by_odds[chosen[2]], x)
    mixed[3] = _mix(mixers.by_token[previous], x)
    return (mixed[0] + mixed[1] + mixed[2] + mixed[3]) / 4


@njit(cache=True, nogil=True, error_model="numpy")
def _follow(weights: Array, times: Array, inputs: Array, error: float, rate: float) -> None:
    times[0] += 1
    rate *= 1.0 + WARM / (1.0 + COOL * times[0])
    for i in range(len(inputs)):
        weights[i] += rate * error * inputs[i]


@njit(cache=True, nogil=True, error_model="numpy")
def _narrow(right: int, middle: int, leaves: Array, counts: Array, sizes: Array) -> None:
    """Keep the followers on the branch that was taken."""
    for number in range(len(sizes)):
        kept = 0
        for at in range(sizes[number]):
            if (leaves[number, at] >= middle) == (right == 1):
                leaves[number, kept], counts[number, kept] = leaves[number, at], counts[number, at]
                kept += 1
        sizes[number] = kept


@njit(cache=True, nogil=True, error_model="numpy")
def _count(table: Array, slots: Array, leaf: int) -> None:
    for number in range(len(slots)):
        slot = slots[number]
        if slot < 0:
            continue
        table.totals[slot] += 1
        at = table.heads[slot]
        while at >= 0 and table.leaves[at] != leaf:
            at = table.following[at]
        if at < 0:
            at = table.used[1]
            table.used[1] += 1
            table.leaves[at], table.counts[at], table.following[at] = leaf, 0.0, table.heads[slot]
            table.heads[slot] = at
        table.counts[at] += 1


@njit(cache=True, nogil=True, error_model="numpy")
def _score(
    previous: Array, targets: Array, models: Array, bos_id: int, rate: float, mixers: Array, stream: Array,
    document: Array, recent: Array, nll: Array, places: Array, kept: Array,
) -> None:  # fmt: skip
    """The loop of `ContextMixing.score`."""
    size = models.shape[2]
    sums = np.zeros((2, size + 1))
    work, chosen, bits = np.zeros((size, 2, 5)), np.zeros((size, 4), np.int64), np.zeros(size)
    lists = (
        (np.zeros((LENGTHS, size), np.int64), np.zeros((LENGTHS, size)), np.zeros(LENGTHS, np.int64),
         np.zeros((LENGTHS, 2))),
        (np.zeros((LENGTHS + 1, size), np.int64), np.zeros((LENGTHS + 1, size)), np.zeros(LENGTHS + 1, np.int64),
         np.zeros((LENGTHS + 1, 2))),
    )  # fmt: skip
    slots, slots_document = np.zeros(LENGTHS, np.int64), np.zeros(LENGTHS + 1, np.int64)
    logs, depths = np.zeros(size), np.zeros(size, np.int64)
    leaf_of = np.empty(size, np.int64)
    for token in range(size):
        leaf_of[mixers.places[token]] = token
    for row in range(len(targets)):
        before, target = previous[row], targets[row]
        if before == bos_id:
            document.keys[:], document.heads[:], document.totals[:], document.used[:] = 0, -1, 0.0, 0
            recent[0] = 0
        for back in range(LENGTHS, 1, -1):
            recent[back] = recent[back - 1]
        recent[1], recent[0] = before, min(recent[0] + 1, LENGTHS)
        for model in range(2):
            total = 0.0
            for place in range(size):
                total += models[model, row, leaf_of[place]]
                sums[model, place + 1] = total
        lists[0][3][:], lists[1][3][:] = 0.0, 0.0
        met = _find(stream, 1, recent, slots) * (LENGTHS + 2) + _find(document, 0, recent, slots_document)
        _open(stream, slots, lists[0][0], lists[0][1], lists[0][2], lists[0][3])
        _open(document, slots_document, lists[1][0], lists[1][1], lists[1][2], lists[1][3])
        if places[row] >= 0:  # the whole distribution, from the root down
            logs[0], depths[0] = 0.0, 0
            for number in range(size - 1):
                z = _decide(number, depths[number], sums, mixers, met, before, lists, work[0], chosen[0])
                for branch in range(2):
                    child = mixers.nodes[number, 3 + branch]
                    log_p = logs[number] - np.log1p(np.exp(-z if branch else z))
                    if child < 0:
                        kept[places[row], -1 - child] = log_p
                    else:
                        logs[child], depths[child] = log_p, depths[number] + 1
        leaf, number, depth, loss = mixers.places[target], 0, 0, 0.0
        while number >= 0:
            z = _decide(number, depth, sums, mixers, met, before, lists, work[depth], chosen[depth])
            middle = mixers.nodes[number, 1]
            bit = 1 if leaf >= middle else 0
            loss += np.log1p(np.exp(-z if bit else z))
            bits[depth] = bit
            _narrow(bit, middle, lists[0][0], lists[0][1], lists[0][2])
            _narrow(bit, middle, lists[1][0], lists[1][1], lists[1][2])
            number, depth = mixers.nodes[number, 3 + bit], depth + 1
        nll[row] = loss
        for at in range(depth):
            _follow_all(mixers, chosen[at], work[at], bits[at], rate)
        _count(stream, slots, leaf)
        _count(document, slots_document, leaf)


@njit(cache=True, nogil=True, error_model="numpy")
def _follow_all(mixers: Array, chosen: Array, work: Array, bit: float, rate: float) -> None:
    """Descend the loss of a decision that is made."""
    x, mixed = work[0], work[1]
    times = mixers.times
    _follow(mixers.by_node[chosen[0]], times[0, chosen[0] : chosen[0] + 1], x, bit - _squash(mixed[0]), rate)
    _follow(mixers.by_length[chosen[1]], times[1, chosen[1] : chosen[1] + 1], x, bit - _squash(mixed[1]), rate)
    _follow(mixers.by_odds[chosen[2]], times[2, chosen[2] : chosen[2] + 1], x, bit - _squash(mixed[2]), rate)
    _follow(mixers.by_token[chosen[3]], times[3, chosen[3] : chosen[3] + 1], x, bit - _squash(mixed[3]), rate)
