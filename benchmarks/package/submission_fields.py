"""The `submission.json` of `pgolf submission` beside those of the newest merged records, field by field.

    python benchmarks/package/submission_fields.py parameter-golf/records/track_10min_16mb records/2026-..._Name

Prints a Markdown table: for each field, its type and the sign of its numbers here and in the five newest records, and
how many of those have it. `seed_results.*` are the fields of one seed. Exit code 1 when a field of both has different
types or signs.
"""

import argparse
import json
from pathlib import Path
from typing import Any

NEWEST = 5


def fields(entry: dict[str, Any]) -> dict[str, str]:
    """Type of each field, with the sign of a number; those of the seeds together."""
    found: dict[str, set[str]] = {}
    for key, value in entry.items():
        found.setdefault(key, set()).add(kind(value))
    for result in entry.get("seed_results", {}).values():
        for key, value in result.items():
            found.setdefault(f"seed_results.*.{key}", set()).add(kind(value))
    return {key: " or ".join(sorted(kinds)) for key, kinds in found.items()}


def kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        sign = "below 0" if value < 0 else "0" if value == 0 else "above 0"
        return f"{'whole number' if isinstance(value, int) else 'number'} {sign}"
    return {str: "text", list: "list", dict: "object"}[type(value)]


def agree(ours: str, theirs: set[str]) -> bool:
    """Whole numbers are numbers, and a time or a count may be written as either."""
    plain = {text.replace("whole ", "") for kinds in theirs for text in kinds.split(" or ")}
    return {text.replace("whole ", "") for text in ours.split(" or ")} <= plain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path)
    parser.add_argument("submission", type=Path)
    given = parser.parse_args()
    folders = sorted(path for path in given.records.iterdir() if (path / "submission.json").is_file())[-NEWEST:]
    theirs = [fields(json.loads((folder / "submission.json").read_text("utf-8"))) for folder in folders]
    ours = fields(json.loads((given.submission / "submission.json").read_text("utf-8")))
    names = dict.fromkeys([*ours, *(name for entry in theirs for name in entry)])
    print(f"The {len(folders)} newest: " + ", ".join(f"`{folder.name}`" for folder in folders) + ".\n")
    print("| field | here | in the records | have it | |\n|---|---|---|---|---|")
    wrong = False
    for name in names:
        kinds = {entry[name] for entry in theirs if name in entry}
        count = sum(name in entry for entry in theirs)
        if name not in ours:
            verdict = "not made"
        elif not kinds:
            verdict = "only here"
        else:
            verdict = "agrees" if agree(ours[name], kinds) else "**differs**"
        wrong |= verdict == "**differs**"
        print(f"| `{name}` | {ours.get(name, '-')} | {'; '.join(sorted(kinds)) or '-'} | {count} | {verdict} |")
    raise SystemExit(int(wrong))


if __name__ == "__main__":
    main()
