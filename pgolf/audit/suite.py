"""The black-box audit of an evaluator: every check in turn, each with its evidence.

The four conditions of a valid score (issue 1017 of openai/parameter-golf), by the audit tests A4 to A12 and A19 that
the field's failures taught. Nothing is read of the evaluator's code; a finding is numbers and the first counterexample.
"""

import itertools
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pgolf.audit import documents, passes, plan, substitution
from pgolf.audit.finding import NOT_RUN, Finding
from pgolf.audit.subject import Subject
from pgolf.evaluate.evaluator import Trace

_REPEATABLE_ONLY = (
    ("single pass", "A10"),
    ("score first", "A9"),
    ("causality", "A5"),
    ("own target", "A6"),
    ("normalization", "A7"),
    ("first block", "A8"),
    ("documents", "A12"),
)


@dataclass(frozen=True)
class AuditSettings:
    probes: int = 128
    """Places changed, one run each: 128 find a look ahead at 1 place in 30 with a probability of 98.7%."""
    seconds: float = 0.0
    """Stop probing after so long, with at least 8 probes done; 0: no limit."""
    sum_positions: int = 8
    """Places of the substitution sum, for evaluators that show no distributions."""
    sum_runs: int = 4096
    """Evaluations that the substitution sum may take in all."""
    seed: int | None = None
    """Of the places and replacements. None: drawn from the system's randomness when the audit runs, so that no
    evaluator can know them before."""


@dataclass(frozen=True)
class BlackBox:
    """The findings, and the scores of the unchanged stream that they were measured against."""

    findings: list[Finding]
    base: Trace
    seed: int
    """Repeats the audit's draws."""
    probes: int
    """Places that were changed before time ran out."""

    @property
    def power(self) -> str:
        """The detection power of the probes, for the report."""
        return f"{self.probes} probes: a look ahead at 1 place in 30 is found with probability " + (
            f"{substitution.power(self.probes):.1%}"
        )


def audit(subject: Subject, settings: AuditSettings, elsewhere: Sequence[Subject] = ()) -> BlackBox:
    """Run every check on one evaluator.

    elsewhere: the same evaluator on other stretches of the text; the probes are shared out among them all.

    Raises CheckFailed when the evaluator does not return one score per target.
    """
    seed = secrets.randbits(63) if settings.seed is None else settings.seed
    generator = np.random.default_rng(seed)
    first = subject.run(subject.tokens, same=True)
    stretches = [subject, *elsewhere]
    share = -(-settings.probes // len(stretches))
    orders = [first.order, *(other.run(other.tokens).order for other in elsewhere)]
    planned = [plan.probes(one, order, share, generator) for one, order in zip(stretches, orders, strict=True)]
    shown = sorted({probe.position for probe in planned[0]} | _late_positions(subject, settings.sum_positions))
    base = subject.run(subject.tokens, shown, same=True)
    repeat, noise = passes.repeatability(subject, first, base)
    findings = [passes.coverage(subject, base), repeat]
    if repeat.failed:
        text = "needs scores that repeat themselves"
        left = [Finding(check, rule, NOT_RUN, text) for check, rule in _REPEATABLE_ONLY]
        return BlackBox([*findings, *left], base, seed, 0)
    findings.append(passes.single_pass(subject, base, noise, generator))
    findings.append(passes.score_first(subject, base, noise, generator))
    bases = [(subject, base)]
    for other, probes in zip(elsewhere, planned[1:], strict=True):
        bases.append(
            (other, other.run(other.tokens, sorted({probe.position for probe in probes}) if base.log_probs else ()))
        )
    seen: list[substitution.Observation] = []
    started = sum(one.seconds for one in stretches)
    # In turn, so that a time limit leaves no stretch of the text out.
    turns = [
        (*bases[index], probe) for row in itertools.zip_longest(*planned) for index, probe in enumerate(row) if probe
    ]
    for one, unchanged, probe in turns:
        taken = sum(item.seconds for item in stretches) - started
        if settings.seconds and len(seen) >= 8 and taken > settings.seconds:
            break
        seen.append(substitution.observe(one, unchanged, probe, noise, generator))
    findings.append(substitution.causality(seen, noise, subject.floor))
    findings.append(substitution.own_target(seen, noise))
    if base.log_probs:
        findings.append(substitution.distributions(bases, seen, noise))
    else:
        places = sorted(_late_positions(subject, settings.sum_positions))
        findings.append(substitution.substitution_sum(subject, base, places, settings.sum_runs, generator))
    findings.append(passes.first_block(subject, base, noise))
    findings.append(passes.extension(subject, base, noise))
    findings.append(documents.documents(subject, base, noise, generator))
    return BlackBox(findings, base, seed, len(seen))


def _late_positions(subject: Subject, count: int) -> set[int]:
    """Places in the last quarter, where whatever an evaluator collects from the stream is full; the last included."""
    length = len(subject.tokens)
    places = np.unique(np.linspace(3 * length // 4, length - 1, num=count).astype(np.int64))
    places = places[subject.tokens[places] != subject.bos_id]
    return {int(place) for place in places}
