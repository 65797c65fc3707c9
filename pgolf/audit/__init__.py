"""Black-box tests of an evaluation's validity: `audit(Subject(...), AuditSettings())`."""

from pgolf.audit.finding import FAILED, NOT_RUN, PASSED, SHOWN, Finding, explain, first_failure
from pgolf.audit.subject import Claims, Subject
from pgolf.audit.substitution import power
from pgolf.audit.suite import AuditSettings, BlackBox, audit

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
    "power",
]
