"""Whether an evaluation is valid, tested as a black box: `audit(Subject(...), AuditSettings())`."""

from pgolf.evaluate.audit.finding import FAILED, NOT_RUN, PASSED, SHOWN, Finding, explain, first_failure
from pgolf.evaluate.audit.subject import Claims, Subject
from pgolf.evaluate.audit.suite import AuditSettings, BlackBox, audit

__all__ = [
    "FAILED",
    "NOT_RUN",
    "PASSED",
    "SHOWN",
    "AuditSettings",
    "BlackBox",
    "Claims",
    "Finding",
    "Subject",
    "audit",
    "explain",
    "first_failure",
]
