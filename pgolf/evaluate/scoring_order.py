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
_WHAT = ("score", "score-each", "learn", "learn-each")
_MOST_PASSES = 100  # of all rows over the text; `phased` learns from all scored text once in each of a few phases
Row = tuple[str, int, int, int, int]


def write(path: Path, trace: Trace) -> None:
    """Write the table of an evaluation."""
    rows = sorted(
        (*_scored(trace.order), *_learned(trace)), key=lambda row: (row[3], row[0].startswith("learn"), row[1])
    )
    with path.open("w", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([COLUMNS, *rows])


def faults(
    path: Path, tokens_scored: int, updates: int | None = None, observed: Trace | None = None, until: int = 0
) -> list[str]:
    """Contradictions of a table, a line each: targets not scored exactly once, and targets scored after an update that
    had learned from them.

    updates: how many the evaluation states, apart from those after every target. observed: another run of the same
    evaluation, which must have scored and learned from the first `until` targets in the same order.
    """
    rows = _read(path, tokens_scored)
    if rows is None:
        return [f"{path}: not a table of the intervals of {tokens_scored:,} targets"]
    found, order, times = [], np.zeros(tokens_scored, np.int64), np.zeros(tokens_scored, np.int64)
    for what, first, last, step, _ in rows:
        if what.startswith("score"):
            order[first - 1 : last] = step + np.arange(last - first + 1) * what.endswith("-each")
            times[first - 1 : last] += 1
    if (times != 1).any():
        at = int(np.flatnonzero(times != 1)[0])
        found.append(f"{path}: target {at + 1:,} is scored {times[at]} times")
    learned = [row for row in rows if row[0].startswith("learn")]
    for what, first, last, step, _ in learned:
        late = order[first - 1 : last] > step + np.arange(last - first + 1) * what.endswith("-each")
        if late.any():
            at = first + int(np.flatnonzero(late)[0])
            found.append(f"{path}: target {at:,} is scored after an update at step {step:,} that learned from it")
            break
    listed = sum(row[4] for row in learned if row[0] == "learn")
    if updates is not None and listed != updates:
        found.append(f"{path}: lists {listed:,} updates, the evaluation made {updates:,}")
    if observed is not None:
        if (other := order[:until] != observed.order[:until]).any():
            at = int(np.flatnonzero(other)[0])
            where = f"at step {order[at]:,}, where the evaluation does it at step {observed.order[at]:,}"
            found.append(f"{path}: target {at + 1:,} is scored {where}")
        mine, theirs = ({row for row in some if row[2] <= until} for some in (learned, _learned(observed)))
        if mine != theirs:
            what, first, last, step, _ = min(mine ^ theirs, key=lambda row: (row[3], row[1]))
            side = "is not made by" if (what, first, last, step, _) in mine else "is missing, though made by"
            found.append(
                f"{path}: the update at step {step:,} from targets {first:,} to {last:,} {side} the evaluation"
            )
    return found


def _read(path: Path, tokens_scored: int) -> list[Row] | None:
    """The rows; None for anything but a table of intervals of so many targets."""
    try:
        with path.open(newline="") as stream:
            header, *lines = csv.reader(stream)
        rows: list[Row] = [(what, int(a), int(b), int(s), int(n)) for what, a, b, s, n in lines]
    except (ValueError, csv.Error):
        return None
    known = header == COLUMNS and all(
        what in _WHAT and 1 <= first <= last <= tokens_scored and 0 <= step < 2**62 and count >= 0
        for what, first, last, step, count in rows
    )
    covered = sum(last - first + 1 for _, first, last, _, _ in rows) if known else 0
    return rows if known and covered <= _MOST_PASSES * tokens_scored else None


def _learned(trace: Trace) -> list[Row]:
    return [("learn-each" if each else "learn", a + 1, b + 1, s, n) for s, a, b, n, each in trace.updates]


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
