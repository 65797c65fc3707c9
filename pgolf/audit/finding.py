"""The result of a check: a verdict, the numbers it rests on, and the first counterexample."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

PASSED = "passed"
FAILED = "failed"
NOT_RUN = "not run"  # the check does not apply, or its input is missing; the summary names the reason
SHOWN = "shown"  # a fact on which the field's judges disagree: stated, not decided


@dataclass(frozen=True)
class Finding:
    check: str
    """Plain name: `causality`, `normalization`, ..."""
    rule: str
    """Number in the field's list of audit tests, for example `A5`."""
    outcome: str
    summary: str
    """One line with the numbers that matter."""
    numbers: dict[str, Any] = field(default_factory=dict)
    counterexample: dict[str, Any] | None = None
    """The first place where the condition is broken; None unless the check failed."""

    @property
    def failed(self) -> bool:
        return self.outcome == FAILED

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def first_failure(findings: Sequence[Finding]) -> Finding | None:
    return next((finding for finding in findings if finding.failed), None)


def explain(finding: Finding) -> str:
    """One line of text: the check, its result, and the place of the first counterexample."""
    text = f"{finding.check} ({finding.rule}) failed: {finding.summary}"
    if finding.counterexample:
        text += "; first counterexample: " + ", ".join(
            f"{key.replace('_', ' ')} {_short(value)}" for key, value in finding.counterexample.items()
        )
    return text


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else repr(value) if isinstance(value, str) else str(value)
