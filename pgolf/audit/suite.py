"""The black-box audit of an evaluator: every check in turn, each with its evidence.

The four conditions of a valid score (issue 1017 of openai/parameter-golf), by the audit tests A4 to A12 and A19 that
the field's failures taught. Nothing is read of the evaluator's code; a finding is numbers and the first counterexample.
"""

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
    probes: int = 64
    """Tokens replaced, one run each; the field's audit tests ask for at least 64."""
    seconds: float = 0.0
    """Stop probing after so long, with at least 8 probes done; 0: no limit."""
    sum_positions: int = 8
    """Places of the substitution sum, for evaluators that show no distributions."""
    sum_runs: int = 4096
    """Evaluations that the substitution sum may take in all."""
    seed: int = 0
    """Of the places and replacements; drawn when the audit runs, so no evaluator can know them before."""


@dataclass(frozen=True)
class BlackBox:
    """The findings, and the scores of the unchanged stream that they were measured against."""

    findings: list[Finding]
    base: Trace


def audit(subject: Subject, settings: AuditSettings) -> BlackBox:
    """Run every check on one evaluator. Raises CheckFailed when what it returns is not even a score per target."""
    generator = np.random.default_rng(settings.seed)
    first = subject.run(subject.tokens)
    probes = plan.probes(subject, first.order, settings.probes, generator)
    shown = sorted({probe.position for probe in probes} | _late_positions(subject, settings.sum_positions))
    base = subject.run(subject.tokens, shown)
    repeat, noise = passes.repeatability(subject, first, base)
    findings = [passes.coverage(subject, base), repeat]
    if repeat.failed:
        text = "needs scores that repeat themselves"
        return BlackBox([*findings, *(Finding(check, rule, NOT_RUN, text) for check, rule in _REPEATABLE_ONLY)], base)
    findings.append(passes.single_pass(subject, base, noise, generator))
    findings.append(passes.score_first(subject, base, noise, generator))
    seen: list[substitution.Observation] = []
    started = subject.seconds
    for probe in probes:
        if settings.seconds and len(seen) >= 8 and subject.seconds - started > settings.seconds:
            break
        seen.append(substitution.observe(subject, base, probe, noise, generator))
    findings.append(substitution.causality(base, seen, noise))
    findings.append(substitution.own_target(seen, noise))
    if base.log_probs:
        findings.append(substitution.distributions(subject, base, seen, noise))
    else:
        places = sorted(_late_positions(subject, settings.sum_positions))
        findings.append(substitution.substitution_sum(subject, base, places, settings.sum_runs, generator))
    findings.append(passes.first_block(subject, base, noise))
    findings.append(passes.extension(subject, base, noise))
    findings.append(documents.documents(subject, base, noise, generator))
    return BlackBox(findings, base)


def _late_positions(subject: Subject, count: int) -> set[int]:
    """Places in the last quarter, where whatever an evaluator collects from the stream is full; the last included."""
    length = len(subject.tokens)
    places = np.unique(np.linspace(3 * length // 4, length - 1, num=count).astype(np.int64))
    places = places[subject.tokens[places] != subject.bos_id]
    return {int(place) for place in places}
