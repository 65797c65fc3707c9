"""Causality and normalization by substitution: change a token and compare the scores (audit tests A5, A6, A7).

Tokens are replaced, never removed: a shorter stream legitimately changes schedules over chunks and batches of
documents. Every second probe replaces one token, the others all that is scored after one. Their runs serve three
questions: did a score that was fixed earlier move (causality), did the distribution at a replaced token move (own
target), and is the score of the new token the logarithm of its probability in the distribution (normalization: a
distribution that is reported but not used for the score is detected here).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pgolf.audit.finding import FAILED, NOT_RUN, PASSED, Finding
from pgolf.audit.plan import Probe
from pgolf.audit.subject import Subject, earlier
from pgolf.evaluate.evaluator import Trace

LOOKAHEAD = 8
"""Distance in tokens: a score that moves this close before the change looks ahead; farther, it is learning or a second
pass."""
_SUM_TOLERANCE = 1e-4
_ESTIMATE_TOLERANCE = 1e-3
_SIGMAS = 4.0
_RARE = 1 / 30  # share of the positions at which a rare look-ahead acts; a rarer one gains next to nothing


@dataclass(frozen=True)
class Observation:
    """The effect of one probe."""

    probe: Probe
    moved: np.ndarray
    """Positions scored before the changed one whose score moved by more than the noise."""
    farthest: int
    """Tokens from the leftmost of them to the changed place; 0 when none moved."""
    largest: float
    """Largest move of a score that may not move, in nats."""
    worst: dict[str, Any] | None
    own_move: float | None
    """Largest move of the log-probabilities at the probe's place; None when none are given."""
    score: float
    """Natural log-probability that the token at the probe's place got."""
    promised: float | None
    """Log-probability of the new token in the unchanged run's distribution."""
    promised_here: float | None
    """Log-probability of the new token in this run's distribution."""
    later_moved: int
    same_step: bool
    """True if all moved scores belong to the step of the changed position, one of several steps."""
    excess: float
    """Move of the last score before the change, in standard deviations of the moves that noise alone makes."""


def observe(subject: Subject, base: Trace, probe: Probe, noise: float, generator: np.random.Generator) -> Observation:
    """Run one probe against the unchanged run `base`: its token replaced, or all that is scored after its token."""
    position = probe.position
    fixed = earlier(base.order, position)  # (N-1,) targets whose scores may not move
    if probe.everything_after:
        fixed[position - 1] = True
        changed = subject.garbage(np.concatenate([[False], ~fixed]), generator)
    else:
        changed = subject.tokens.copy()
        changed[position] = probe.replacement
    trace = subject.run(changed, [position] if position in base.log_probs else [])
    alike = True
    if probe.boundary:  # only targets that keep their step; batches of documents may round differently
        alike = bool((trace.order == base.order)[fixed].all())
        fixed, noise = fixed & alike, max(noise, 10 * subject.floor)
    difference = np.abs(trace.nll - base.nll)
    moved = np.flatnonzero(fixed & (difference > noise)) + 1
    worst = None
    if len(moved):
        at = int(moved[np.argmax(difference[moved - 1])])
        worst = {
            "changed_position": position,
            **({"everything_after_replaced": True} if probe.everything_after else {"replaced_by": probe.replacement}),
            "moved_position": at,
            "tokens_before_the_change": position + probe.everything_after - at,
            "score_before": -float(base.nll[at - 1]),
            "score_after": -float(trace.nll[at - 1]),
            "step_of_moved": int(base.order[at - 1]),
            "step_of_changed": int(base.order[position - 1]),
        }
    old, new = base.log_probs.get(position), trace.log_probs.get(position)
    token = int(changed[position])
    if not alike:
        old = None
    steps = base.order[moved - 1] - base.order[position - 1]
    near = position + probe.everything_after - 2  # index of the last score that may not move
    rest = np.delete(difference[fixed], np.flatnonzero(np.flatnonzero(fixed) == near))
    spread = float(rest.std()) if len(rest) > 1 else 0.0
    known = near >= 0 and bool(fixed[near]) and spread > 0
    return Observation(
        probe=probe,
        moved=moved,
        farthest=int(np.abs(position + probe.everything_after - moved).max()) if len(moved) else 0,
        largest=float(difference[fixed].max(initial=0.0)),
        worst=worst,
        own_move=_distance(old, new) if old is not None and new is not None else None,
        score=-float(trace.nll[position - 1]),
        promised=float(old[token]) if old is not None else None,
        promised_here=float(new[token]) if new is not None else None,
        later_moved=int((difference[~fixed] > noise).sum()),
        same_step=len(np.unique(base.order)) > 1 and bool((steps == 0).all()),
        excess=float((difference[near] - rest.mean()) / spread) if known else 0.0,
    )


def power(probes: int) -> float:
    """Probability that this many places catch an evaluation that looks ahead at `_RARE` of all places."""
    return 1 - (1 - _RARE) ** probes


def causality(seen: Sequence[Observation], noise: float, floor: float) -> Finding:
    """A5: no score may move before the change, in the order in which scores were fixed."""
    broken = [item for item in seen if len(item.moved)]
    after = [item for item in seen if item.probe.everything_after and item.own_move is not None]
    own = max(after, key=lambda item: item.own_move or 0.0, default=None)
    numbers: dict[str, Any] = {
        "probes": len(seen),
        "probes_that_moved_an_earlier_score": len(broken),
        "largest_move_nats": max((item.largest for item in seen), default=0.0),
        "farthest_tokens": max((item.farthest for item in seen), default=0),
        "median_later_scores_moved": float(np.median([item.later_moved for item in seen])) if seen else 0.0,
        "distributions_watched": len(after),
        "largest_move_of_a_distribution_nats": own.own_move if own else None,
        "noise_nats": noise,
        "boundary_probes": sum(item.probe.boundary for item in seen),
        "power_against_1_in_30": power(len(seen)),
    }
    excess = float(np.mean([item.excess for item in seen])) * math.sqrt(len(seen)) if seen else 0.0
    if noise > floor and not broken and excess > _SIGMAS:
        text = (
            f"scores next to a change move more than noise does ({excess:.1f} standard errors): a leak hidden in noise"
        )
        where = {"mean_excess_standard_errors": excess}
        return Finding("causality", "A5", FAILED, text, numbers, where)
    if not broken and own is not None and (own.own_move or 0.0) > noise:
        text = f"a distribution moved by {own.own_move:.4f} nats when all that is scored after it was replaced"
        return Finding("causality", "A5", FAILED, text, numbers, {"position": own.probe.position})
    if not broken:
        largest = f"largest move {numbers['largest_move_nats']:.1e}"
        text = f"{len(seen)} changes of the text moved no score that was fixed before them ({largest}); "
        text += f"a look ahead at 1 place in 30 would be found with probability {power(len(seen)):.1%}"
        return Finding("causality", "A5", PASSED, text, numbers)
    first = min(broken, key=lambda item: (item.farthest > LOOKAHEAD, item.probe.position))
    numbers["diagnosis"] = _diagnose(broken)
    text = (
        f"{len(broken)} of {len(seen)} changes of the text moved scores fixed before them, by up to "
        f"{numbers['largest_move_nats']:.4f} nats: {numbers['diagnosis']}"
    )
    return Finding("causality", "A5", FAILED, text, numbers, first.worst)


def _diagnose(broken: Sequence[Observation]) -> str:
    reach = max(item.farthest for item in broken)
    if reach <= LOOKAHEAD:
        return f"it looks {reach} token{'s' if reach > 1 else ''} ahead"
    if all(item.same_step for item in broken):
        return "the moved scores are in the same step: the evaluator learns from a block before scoring it"
    return "scores fixed long before move: statistics of later text, or a further pass over it, reach them"


def own_target(seen: Sequence[Observation], noise: float) -> Finding:
    """A6: the distribution at a place may not depend on the token that came there."""
    moves = [item for item in seen if item.own_move is not None and not item.probe.everything_after]
    if not moves:
        text = "the evaluator returns no distributions; the substitution sum (A7) replaces this check"
        return Finding("own target", "A6", NOT_RUN, text)
    worst = max(moves, key=lambda item: item.own_move or 0.0)
    numbers = {
        "probes": len(moves),
        "probes_that_moved_the_distribution": sum((item.own_move or 0.0) > noise for item in moves),
        "largest_move_nats": worst.own_move,
        "noise_nats": noise,
    }
    if (worst.own_move or 0.0) <= noise:
        text = f"{len(moves)} distributions did not depend on the token that came (largest {worst.own_move:.1e} nats)"
        return Finding("own target", "A6", PASSED, text, numbers)
    text = (
        f"{numbers['probes_that_moved_the_distribution']} of {len(moves)} distributions changed with the token that "
        f"came, by up to {worst.own_move:.4f} nats"
    )
    return Finding(
        "own target",
        "A6",
        FAILED,
        text,
        numbers,
        {
            "position": worst.probe.position,
            "replaced_by": worst.probe.replacement,
            "log_probability_of_the_replacement_before": worst.promised,
            "log_probability_of_the_replacement_after": worst.promised_here,
        },
    )


def distributions(bases: Sequence[tuple[Subject, Trace]], seen: Sequence[Observation], noise: float) -> Finding:
    """A7 with distributions: each sums to one over the vocabulary, and the scores are taken from them."""
    sums: list[tuple[float, int, float]] = []
    gaps: list[tuple[float, int, int, float, float]] = []
    shown = [(subject, base, *entry) for subject, base in bases for entry in sorted(base.log_probs.items())]
    for subject, base, position, log_probs in shown:
        if log_probs.shape != (subject.vocab_size,):
            text = f"a distribution over {log_probs.shape} instead of the vocabulary's {subject.vocab_size} tokens"
            return Finding("normalization", "A7", FAILED, text, {}, {"position": position})
        sums.append((abs(_log_sum_exp(log_probs)), position, _log_sum_exp(log_probs)))
        token, score = int(subject.tokens[position]), -float(base.nll[position - 1])
        gaps.append((score - float(log_probs[token]), position, token, score, float(log_probs[token])))
    for item in seen:
        if item.promised_here is not None and not item.probe.everything_after:
            place, token, promised = item.probe.position, item.probe.replacement, item.promised_here
            gaps.append((item.score - promised, place, token, item.score, promised))
    widest, widest_gap = max(sums), max(gaps, key=lambda entry: abs(entry[0]))
    gap, place, token, score, promised = widest_gap
    numbers: dict[str, Any] = {
        "distributions": len(sums),
        "largest_log_sum_exp": widest[0],
        "scores_compared": len(gaps),
        "largest_gap_to_score_nats": abs(gap),
        "noise_nats": noise,
    }
    if widest[0] > max(_SUM_TOLERANCE, noise):
        text = f"a distribution sums to {math.exp(widest[2]):.6g}, not 1"
        where: dict[str, Any] = {"position": widest[1], "sum": math.exp(widest[2])}
        return Finding("normalization", "A7", FAILED, text, numbers, where)
    if abs(gap) > max(1e-5, noise):
        kept = all(entry[0] > -noise for entry in gaps)
        text = f"a score differs from its distribution by {gap:+.4f} nats" + (
            "; scores are never below it, so the better of several was kept" if kept else ""
        )
        where = {"position": place, "token": token, "score": score, "log_probability": promised}
        return Finding("normalization", "A7", FAILED, text, numbers, where)
    text = f"{len(sums)} distributions sum to 1 (within {widest[0]:.1e}); {len(gaps)} scores are taken from them"
    return Finding("normalization", "A7", PASSED, text, numbers)


def substitution_sum(
    subject: Subject,
    base: Trace,
    positions: Sequence[int],
    runs: int,
    generator: np.random.Generator,
) -> Finding:
    """A7 from scores alone: put every token of the vocabulary in a place; the probabilities it gets must sum to one.

    Needs no distribution from the evaluator, only the score of the token. Where `runs` evaluations are enough, all
    tokens are tried; otherwise the likeliest ones and a sample that represents the rest.
    """
    share = max(8, runs // max(1, len(positions)))
    exact = share >= subject.vocab_size
    rows = []
    for position in positions:
        total, error, drawn = _sum_at(subject, base, position, share, exact, generator)
        rows.append({"position": position, "sum": total, "standard_error": error, "evaluations": drawn})
    worst = max(rows, key=lambda row: max(abs(row["sum"] - 1) - _SIGMAS * row["standard_error"], 0.0))
    numbers = {"positions": rows, "exact": exact}
    if abs(worst["sum"] - 1) > _ESTIMATE_TOLERANCE + _SIGMAS * worst["standard_error"]:
        text = f"the probabilities of all tokens in one place sum to {worst['sum']:.4g} ± {worst['standard_error']:.2g}"
        return Finding("normalization", "A7", FAILED, text, numbers, worst)
    how = "over the whole vocabulary" if exact else f"estimated from {share} tokens each"
    text = f"{len(rows)} sums {how} lie within {abs(worst['sum'] - 1):.2g} of 1"
    return Finding("normalization", "A7", PASSED, text, numbers)


def _sum_at(
    subject: Subject, base: Trace, position: int, share: int, exact: bool, generator: np.random.Generator
) -> tuple[float, float, int]:
    def probability(token: int) -> float:
        if token == int(subject.tokens[position]):
            return math.exp(-float(base.nll[position - 1]))
        changed = subject.tokens.copy()
        changed[position] = token
        return math.exp(-float(subject.run(changed).nll[position - 1]))

    previous = int(subject.tokens[position - 1])
    followers = subject.tokens[1:][subject.tokens[:-1] == previous]
    counts = np.bincount(subject.tokens, minlength=subject.vocab_size) / len(subject.tokens)
    counts += np.bincount(followers, minlength=subject.vocab_size)  # likely tokens first
    ranked = np.argsort(-counts, kind="stable")
    if exact:
        return math.fsum(probability(int(token)) for token in ranked), 0.0, subject.vocab_size
    top, rest = np.split(ranked, [share // 2])
    drawn = generator.permutation(rest)[: share - len(top)]
    certain = math.fsum(probability(int(token)) for token in top)
    sampled = np.array([probability(int(token)) for token in drawn])
    partial = certain + float(sampled.sum())
    if partial > 1 + _ESTIMATE_TOLERANCE:
        return partial, 0.0, share  # part of a sum that is above one is a proof, not an estimate
    unseen = 1 - len(drawn) / len(rest)  # drawn without replacement
    error = len(rest) * float(sampled.std(ddof=1)) * math.sqrt(unseen / len(drawn)) if len(drawn) > 1 else 1.0
    return certain + len(rest) * float(sampled.mean()), error, share


def _log_sum_exp(values: np.ndarray) -> float:
    top = float(values.max())
    return top + math.log(float(np.exp(values - top).sum())) if math.isfinite(top) else top


def _distance(first: np.ndarray, second: np.ndarray) -> float:
    """Largest difference of two log-distributions; where both are zero probability they agree."""
    if first.shape != second.shape:
        return math.inf
    both_zero = np.isneginf(first) & np.isneginf(second)
    with np.errstate(invalid="ignore"):
        gap = np.where(both_zero, 0.0, np.abs(first - second))
    return float(np.nan_to_num(gap, nan=math.inf).max())
