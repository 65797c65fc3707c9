"""An audit's findings for people: a table on the screen, and `report.md`."""

import json
from collections.abc import Mapping
from typing import Any

from pgolf.audit import FAILED
from pgolf.progress import Reporter
from pgolf.store.stage_directory import Stage

_UNSEEN = (
    "A black-box test shows the behavior of an evaluation on the tested text, not on other text. Files and "
    "connections are those that Python code opens; the sandbox stops native code (docs/SECURITY.md)."
)


def show(reporter: Reporter, stage: Stage, report: Mapping[str, Any]) -> None:
    """Every check with its verdict and evidence, then the questions on which the field's judges disagree."""
    rows = [(f"{row['check']}: {row['summary']}", row["rule"], row["outcome"]) for row in report["findings"]]
    title = f"{stage.label} of {report['source']}, {report['evaluator']}, {report['text']}"
    reporter.table(title, ("check and its evidence", "test", "verdict"), rows)
    reporter.message(f"{report['power']}; seed {report['seed']}")
    for row in report["disputes"]:
        reporter.message(f"not decided here, {row['question']}: {row['here']}")


def markdown(report: Mapping[str, Any]) -> str:
    """The whole report, with the numbers of every check and each counterexample."""
    metrics = report["metrics"]
    failed = [row for row in report["findings"] if row["outcome"] == FAILED]
    verdict = f"**Failed: {', '.join(row['check'] for row in failed)}.**" if failed else "**No check failed.**"
    lines = [
        f"# Audit of {report['source']}, evaluator `{report['evaluator']}`",
        "",
        f"{verdict} {metrics['checks_passed']} passed, {metrics['checks_failed']} failed, "
        f"{metrics['checks_not_run']} did not apply; {metrics['evaluations']} evaluations of {report['text']} "
        f"in {metrics['seconds']:.0f} s.",
        "",
        f"Places and replacements were drawn with seed {report['seed']} (`--probe-seed` repeats them). "
        f"{report['power']}.",
        "",
        "| check | test | verdict | evidence |",
        "|---|---|---|---|",
    ]
    for row in report["findings"]:
        verdict = f"**{row['outcome']}**" if row["outcome"] == FAILED else row["outcome"]
        lines.append(f"| {row['check']} | {row['rule']} | {verdict} | {_cell(row['summary'])} |")
    for row in failed:
        lines += ["", f"## {row['check']}: first counterexample", ""]
        lines += [f"- {key.replace('_', ' ')}: {value!r}" for key, value in (row["counterexample"] or {}).items()]
    lines += ["", "## Shown, not decided", ""]
    lines += [f"- {row['question']}: {row['here']}" for row in report["disputes"]]
    lines += ["", "## Numbers", "", _UNSEEN, ""]
    for row in report["findings"]:
        if row["numbers"]:
            lines += [f"**{row['check']}**", "", "```json", json.dumps(row["numbers"], ensure_ascii=False), "```", ""]
    lines += ["Settings:", "", "```json", json.dumps(report["settings"], ensure_ascii=False), "```", ""]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
