"""The order of scoring and learning as a table, so that a reader can check an evaluation without running it.

One CSV row per interval of targets, in time order: `what,first,last,step,updates`. Targets are positions in the stream,
1 to N-1. `score`: the targets were scored at `step`. `learn`: after the scores of `step` and before those of the next,
`updates` updates learned from these targets. With `-each` the first target belongs to `step`, and every further one to
the step after it.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pgolf.evaluate.evaluator import Trace

COLUMNS = ["what", "first", "last", "step", "updates"]
Row = tuple[str, int, int, int, int]


def write(path: Path, trace: Trace) -> None:
    """Write the table of an evaluation."""
    learned = (("learn-each" if each else "learn", a + 1, b + 1, s, n) for s, a, b, n, each in trace.updates)
    rows = sorted((*_scored(trace.order), *learned), key=lambda row: (row[3], row[0].startswith("learn"), row[1]))
    with path.open("w", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([COLUMNS, *rows])


def faults(path: Path, tokens_scored: int) -> list[str]:
    """What a table shows to be wrong, a line each: targets not scored once, and targets scored after an update that
    had learned from them."""
    try:
        with path.open(newline="") as stream:
            header, *lines = csv.reader(stream)
        rows: list[Row] = [(what, int(a), int(b), int(s), int(n)) for what, a, b, s, n in lines]
        known = header == COLUMNS and all(
            1 <= first <= last <= tokens_scored and 0 <= step < 2**62 for _, first, last, step, _ in rows
        )
    except (ValueError, csv.Error):
        known = False
    if not known:
        return [f"{path}: not a table of the intervals of {tokens_scored:,} targets"]
    found, order, times = [], np.zeros(tokens_scored, np.int64), np.zeros(tokens_scored, np.int64)
    for what, first, last, step, _ in rows:
        if what.startswith("score"):
            order[first - 1 : last] = step + np.arange(last - first + 1) * what.endswith("-each")
            times[first - 1 : last] += 1
    if (times != 1).any():
        at = int(np.flatnonzero(times != 1)[0])
        found.append(f"{path}: target {at + 1:,} is scored {times[at]} times")
    for what, first, last, step, _ in rows:
        late = order[first - 1 : last] > step + np.arange(last - first + 1) * what.endswith("-each")
        if what.startswith("learn") and late.any():
            at = first + int(np.flatnonzero(late)[0])
            found.append(f"{path}: target {at:,} is scored after an update at step {step:,} that learned from it")
            break
    return found


def _scored(order: np.ndarray) -> Iterator[Row]:
    """Intervals of targets of the same step; single targets whose steps follow one another are joined."""
    starts = np.flatnonzero(np.diff(order, prepend=order[0] - 1))
    ends = np.append(starts[1:], len(order))
    single = ends - starts == 1
    joined = single[1:] & single[:-1] & (order[starts[1:]] == order[starts[:-1]] + 1)
    heads = np.flatnonzero(~np.concatenate(([False], joined)))
    for head, tail in zip(heads.tolist(), [*(heads[1:] - 1).tolist(), len(starts) - 1], strict=True):
        first, last = int(starts[head]) + 1, int(ends[tail])
        yield "score-each" if tail > head else "score", first, last, int(order[first - 1]), 0
