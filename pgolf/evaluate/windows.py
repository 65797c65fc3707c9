"""Sliding windows: the context and the newly scored targets of each window.

Targets are positions 1..N-1 of the stream. A window is a stretch of inputs `start..stop-1` that predicts the targets
`start+1..stop` and scores the last `scored` of them. The first window of a segment scores all of its targets; every
later one begins `stride` further on and scores the `stride` targets that no earlier window reached. So a scored target
has more than `seq_len - stride` tokens of context wherever the segment holds that many, and none is scored twice: a
window that would begin too close to the end to reach anything new does not exist (the challenge's own loop scores the
tail again and again).
"""

import itertools
from dataclasses import dataclass

import numpy as np

from pgolf.errors import CheckFailed, PgolfError


@dataclass(frozen=True)
class Window:
    start: int
    stop: int
    scored: int

    @property
    def length(self) -> int:
        return self.stop - self.start


def segments(tokens: np.ndarray, bos_id: int | None) -> list[tuple[int, int]]:
    """Stretches of inputs that contexts do not cross: `(first, end)`, the targets being `first+1..end`.

    tokens: (N,). With `bos_id` None the stream is one stretch; else each document, whose last target is the BOS of
    the next one.
    """
    last = len(tokens) - 1  # the last token is a target only
    if bos_id is None:
        return [(0, last)]
    starts = np.flatnonzero(tokens[:last] == bos_id).tolist()
    edges = [0, *(start for start in starts if start > 0), last]
    return list(itertools.pairwise(edges))


def plan(tokens: np.ndarray, seq_len: int, stride: int, bos_id: int | None = None) -> list[Window]:
    """The windows of a stream, in stream order; with `bos_id`, none crosses a document's beginning."""
    if not 1 <= stride <= seq_len:
        raise PgolfError(f"stride {stride} must lie between 1 and the context of {seq_len} tokens")
    windows = []
    for first, end in segments(tokens, bos_id):
        stop = min(first + seq_len, end)
        windows.append(Window(first, stop, stop - first))
        start = first + stride
        while stop < end:
            reach = min(start + seq_len, end)
            windows.append(Window(start, reach, reach - stop))
            start, stop = start + stride, reach
    return windows


def check_coverage(counts: np.ndarray) -> None:
    """Raise CheckFailed unless every target was scored exactly once. counts: (N-1,) times each was scored."""
    wrong = np.flatnonzero(counts != 1)
    if wrong.size:
        target = int(wrong[0])
        raise CheckFailed(
            f"{wrong.size} of {counts.size} targets were not scored exactly once; the first is token {target + 1}, "
            f"scored {int(counts[target])} times"
        )
