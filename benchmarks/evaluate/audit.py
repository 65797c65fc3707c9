"""Catch every broken evaluator of the tests, and count the seconds that each takes.

    python benchmarks/evaluate/audit.py

Runs the audit with its default number of probes on the legal and the broken evaluators that the tests keep
(tests/helpers/toy_evaluators.py) and writes audit.json beside it. Exits 1 if a legal one fails, a broken
one passes or fails for another reason than its own, or one takes more than a minute.
"""

import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
for _folder in ("helpers", "pgolf/audit"):
    sys.path.insert(0, str(HERE.parents[1] / "tests" / _folder))

import test_black_box as cases  # noqa: E402  (the tests' folder is not a package)
import toy_evaluators as toys  # noqa: E402

from pgolf import audit as audits  # noqa: E402
from pgolf.audit import AuditSettings, Claims, Subject  # noqa: E402

SECONDS = 60.0


def run(evaluator: Any, plain: Any = None, **claims: Any) -> tuple[list[audits.Finding], int, float]:
    subject = Subject(
        evaluator, toys.text(), vocab_size=toys.VOCAB, bos_id=toys.BOS, plain=plain, claims=Claims(**claims)
    )
    clock = time.perf_counter()
    findings = audits.audit(subject, AuditSettings()).findings
    return findings, subject.runs, time.perf_counter() - clock


def main() -> None:
    rows, wrong = [], 0
    for name, (evaluator, claims) in cases.LEGAL.items():
        findings, runs, seconds = run(evaluator, **claims)
        failed = [finding.check for finding in findings if finding.failed]
        wrong += bool(failed) or seconds > SECONDS
        rows.append({"evaluator": name, "legal": True, "failed": failed, "evaluations": runs, "seconds": seconds})
    for name, (evaluator, claims, expected, reason) in cases.BROKEN.items():
        findings, runs, seconds = run(evaluator, **claims)
        failed = {finding.check: finding.summary for finding in findings if finding.failed}
        caught = set(failed) == expected and any(reason in summary for summary in failed.values())
        wrong += not caught or seconds > SECONDS
        rows.append({"evaluator": name, "legal": False, "failed": failed, "evaluations": runs, "seconds": seconds})
    for row in rows:
        verdict = ", ".join(row["failed"]) or "passes"
        print(f"{row['evaluator']:<44} {row['evaluations']:>5} evaluations {row['seconds']:6.2f} s  {verdict}")
    result = {"machine": platform.processor() or platform.machine(), "wrong": wrong, "rows": rows}
    (HERE.parent / "results" / "audit.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
