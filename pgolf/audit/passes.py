"""Conditions 3 and 4: scored before anything learns from it, and one pass (audit tests A4, A8, A9, A10, A19).

All by black box: replace what a step is about to score and see whether its first scores move; replace all that is
scored late and see whether anything scored early moves; score the same stream twice and see whether something was
remembered. What moves only within a few tokens of the change is left to the causality check, which names it better.
"""

import numpy as np

from pgolf.audit.finding import FAILED, NOT_RUN, PASSED, SHOWN, Finding
from pgolf.audit.subject import Subject
from pgolf.audit.substitution import LOOKAHEAD
from pgolf.evaluate.evaluator import Trace

_REPEAT_LIMIT = 30.0  # floors: runs of one evaluation that differ by more are not the same evaluation
_MOST_RUNS = 8
_BLOCKS = 6
_CUTS = (0.25, 0.5, 0.75)


def repeatability(subject: Subject, first: Trace, again: Trace) -> tuple[Finding, float]:
    """A19: scoring the same stream twice gives the same scores. Also returns the noise in nats.

    The stream is scored until the range of a token's scores grows by less than a tenth. Noise is one and a half times
    the largest range, at least the floor of the arithmetic: a wide allowance would hide a leak.
    """
    difference = again.nll - first.nll
    mean = float(difference.mean())
    low, high = np.minimum(first.nll, again.nll), np.maximum(first.nll, again.nll)
    largest, before, runs = float((high - low).max()), 0.0, 2
    while 0 < largest <= _REPEAT_LIMIT * subject.floor and largest > 1.1 * before and runs < _MOST_RUNS:
        once_more = subject.run(subject.tokens, same=True).nll
        low, high = np.minimum(low, once_more), np.maximum(high, once_more)
        before, largest, runs = largest, float((high - low).max()), runs + 1
    noise = max(1.5 * largest, subject.floor)
    numbers = {"largest_difference_nats": largest, "mean_difference_nats": mean, "noise_nats": noise, "runs": runs}
    limit = _REPEAT_LIMIT * subject.floor
    if largest <= limit:
        text = f"{runs} runs differ by at most {largest:.1e} nats; differences up to {noise:.1e} count as noise"
        return Finding("repeatability", "A19", PASSED, text, numbers), noise
    better = mean < 0
    text = f"scored a second time, the stream is {abs(mean):.4f} nats per token {'better' if better else 'worse'}: " + (
        "something learned in the first pass was kept" if better else "the evaluation does not repeat itself"
    )
    at = int(np.argmax(np.abs(difference)))
    where = {"position": at + 1, "score_first": -float(first.nll[at]), "score_again": -float(again.nll[at])}
    return Finding("repeatability", "A19", FAILED, text, numbers, where), noise


def coverage(subject: Subject, base: Trace) -> Finding:
    """A4: one finite score for every target but none for the first token, and none above certainty."""
    count = len(subject.tokens) - 1
    numbers = {
        "tokens_scored": count,
        "total_nats": float(base.nll.sum()),
        "nats_per_token": float(base.nll.mean()),
        "steps": len(np.unique(base.order)),
        "scored_in_stream_order": bool((np.diff(base.order) >= 0).all()),
    }
    low = int(np.argmin(base.nll))
    if base.nll[low] < -subject.floor:
        text = f"position {low + 1} got a probability above 1"
        return Finding("coverage", "A4", FAILED, text, numbers, {"position": low + 1, "score": -float(base.nll[low])})
    text = f"{count:,} targets, each with one score, {numbers['steps']:,} steps, {base.nll.mean():.4f} nats per token"
    return Finding("coverage", "A4", PASSED, text, numbers)


def first_block(subject: Subject, base: Trace, noise: float) -> Finding:
    """A8: before anything was scored there is nothing to have learned from, so adaptation changes nothing yet."""
    if subject.plain is None:
        return Finding("first block", "A8", NOT_RUN, "nothing to compare with: the evaluator does not adapt")
    plain = subject.run(subject.tokens, plain=True)
    first = base.order == base.order.min()
    difference = np.abs(base.nll - plain.nll)[first]
    tolerance = max(noise, 10 * subject.floor)  # the two may take another path through the same arithmetic
    at = int(np.flatnonzero(first)[np.argmax(difference)])
    numbers = {
        "targets": int(first.sum()),
        "largest_difference_nats": float(difference.max()),
        "tolerance_nats": tolerance,
        "nats_per_token": float(base.nll.mean()),
        "nats_per_token_without_adaptation": float(plain.nll.mean()),
    }
    if difference.max() > tolerance:
        text = f"the first block's scores differ by up to {difference.max():.4f} nats from those without adaptation"
        where = {"position": at + 1, "score": -float(base.nll[at]), "score_without": -float(plain.nll[at])}
        return Finding("first block", "A8", FAILED, text, numbers, where)
    text = f"{int(first.sum()):,} targets score the same with and without adaptation (within {difference.max():.1e})"
    return Finding("first block", "A8", PASSED, text, numbers)


def score_first(subject: Subject, base: Trace, noise: float, generator: np.random.Generator) -> Finding:
    """A9: replace the second half of a block's targets; scores of the first half, and all before, may not move.

    A block is a step. Where steps are a few tokens short, something may still be learned block by block from all of
    them: then blocks of the longest declared period are taken, which is stricter and asks no more than causality.
    """
    if not subject.claims.adapts and len(np.unique(base.order)) == 1:
        return Finding("score first", "A9", NOT_RUN, "one step: nothing is learned between scores")
    blocks = _blocks(subject, base)
    if not blocks:
        return Finding("score first", "A9", NOT_RUN, f"no block of more than {2 * LOOKAHEAD} tokens in this stream")
    picked = {0, 1, len(blocks) - 1, *generator.permutation(len(blocks))[: _BLOCKS - 3].tolist()}
    chosen = [blocks[index] for index in sorted(picked) if index < len(blocks)]
    tested, moved_blocks, largest, where = 0, 0, 0.0, None
    for targets in chosen:
        cut = int(targets[len(targets) // 2])
        replaced = np.zeros(len(subject.tokens), dtype=bool)
        replaced[targets[targets >= cut]] = True
        trace = subject.run(subject.garbage(replaced, generator))
        fixed = targets[targets < cut - LOOKAHEAD] - 1
        difference = np.abs(trace.nll - base.nll)[fixed]
        tested += len(fixed)
        largest = max(largest, float(difference.max(initial=0.0)))
        if (difference > noise).any():
            moved_blocks += 1
            at = int(fixed[np.argmax(difference > noise)])
            where = where or {
                "block_begins_at": int(targets[0]),
                "replaced_from_position": cut,
                "moved_position": at + 1,
                "score_before": -float(base.nll[at]),
                "score_after": -float(trace.nll[at]),
            }
    numbers = {"blocks": len(chosen), "blocks_moved": moved_blocks, "targets": tested, "largest_move_nats": largest}
    if where is not None:
        text = f"in {moved_blocks} of {len(chosen)} blocks the first scores depend on the last tokens: "
        text += "learned before scored"
        return Finding("score first", "A9", FAILED, text, numbers, where)
    text = f"the first halves of {len(chosen)} blocks do not depend on their second halves (largest {largest:.1e})"
    return Finding("score first", "A9", PASSED, text, numbers)


def _blocks(subject: Subject, base: Trace) -> list[np.ndarray]:
    """Ascending target positions of each block; blocks too small to distinguish from looking ahead are left out."""
    steps, sizes = np.unique(base.order, return_counts=True)
    wide = steps[sizes > 2 * LOOKAHEAD]
    if len(wide) and len(steps) > 1:
        return [np.flatnonzero(base.order == step) + 1 for step in wide]
    if (np.diff(base.order) < 0).any():
        return []  # documents out of stream order, a few tokens a step
    length = len(base.order)
    period = max((size for size in subject.claims.periods if 2 * LOOKAHEAD < size <= length // 2), default=0)
    if not period:
        return []
    return [np.arange(start, min(start + period, length + 1)) for start in range(1, length + 1 - 2 * LOOKAHEAD, period)]


def single_pass(subject: Subject, base: Trace, noise: float, generator: np.random.Generator) -> Finding:
    """A10 at equal length: replace all that is scored in the later steps; no score of an earlier step may move."""
    ranks = np.argsort(np.argsort(base.order, kind="stable"), kind="stable")  # (N-1,) place in scoring order
    cuts, largest, where, reached = [], 0.0, None, 0
    for share in _CUTS:
        due = ranks >= int(share * len(ranks))
        at_cut = int(np.flatnonzero(due)[np.argmin(ranks[due])])
        step = base.order[at_cut]
        several = step > base.order.min()
        late = base.order >= step if several else np.arange(len(ranks)) >= at_cut
        replaced = np.concatenate([[False], late])  # (N,)
        trace = subject.run(subject.garbage(replaced, generator))
        fixed = ~late & (_tokens_to_next(replaced)[1:] > LOOKAHEAD)
        moved = fixed & (np.abs(trace.nll - base.nll) > noise)
        cuts.append({"from_step": int(step), "scores_fixed": int(fixed.sum()), "moved": int(moved.sum())})
        largest = max(largest, float(np.abs(trace.nll - base.nll)[fixed].max(initial=0.0)))
        reached += int(fixed.sum())
        if moved.any() and where is None:
            at = int(np.argmax(moved))
            where = {
                "replaced_from_position": int(np.argmax(replaced)),
                "replaced_from_step": int(step),
                "moved_position": at + 1,
                "step_of_moved": int(base.order[at]),
                "score_before": -float(base.nll[at]),
                "score_after": -float(trace.nll[at]),
            }
    numbers = {"cuts": cuts, "largest_move_nats": largest, "noise_nats": noise}
    if where is not None:
        text = "scores of earlier steps depend on text that is scored later: more than one pass, or its statistics"
        return Finding("single pass", "A10", FAILED, text, numbers, where)
    text = f"{reached:,} scores of earlier steps did not move when all later text was replaced (largest {largest:.1e})"
    return Finding("single pass", "A10", PASSED, text, numbers)


def extension(subject: Subject, base: Trace, noise: float) -> Finding:
    """A10 at another length: scores may depend on the stream's length through a schedule; then that is reported."""
    length = 3 * len(subject.tokens) // 4
    short = subject.run(subject.tokens[:length])
    last = short.order.max() if short.order.max() > short.order.min() else short.order.max() + 1
    whole = short.order < last  # a step cut in two is not the same step
    difference = np.abs(short.nll - base.nll[: length - 1])[whole][: -LOOKAHEAD or None]
    tolerance = max(noise, 10 * subject.floor)
    numbers = {"tokens": length, "largest_difference_nats": float(difference.max(initial=0.0))}
    if difference.max(initial=0.0) > tolerance:
        text = (
            f"scores depend on the stream's length (up to {difference.max():.4f} nats): a schedule over the stream, "
            "or batches of its documents"
        )
        return Finding("extension", "A10", SHOWN, text, numbers)
    text = f"the first {length:,} tokens score the same alone (largest difference {difference.max(initial=0.0):.1e})"
    return Finding("extension", "A10", PASSED, text, numbers)


def _tokens_to_next(marked: np.ndarray) -> np.ndarray:
    """(N,) distance from each position to the next marked one at or after it; large where there is none."""
    length = len(marked)
    places = np.where(marked, np.arange(length), 2 * length)
    return np.minimum.accumulate(places[::-1])[::-1] - np.arange(length)
