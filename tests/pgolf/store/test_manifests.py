"""Manifests of every version stay readable; what stages write is what the table of kinds and docs/MANIFEST.md list."""

import json
import re
from pathlib import Path

import pytest

from pgolf import config as configs
from pgolf.store import kinds
from pgolf.store import manifest as manifests

HERE = Path(__file__).parent
OLD = sorted((HERE / "manifests_0_1").glob("*.json"))
DOCUMENT = (HERE.parents[2] / "docs" / "MANIFEST.md").read_text("utf-8")


def fields(part: str) -> dict[str, set[str]]:
    """Of each kind, the fields that the table of kinds has for `metrics` or `details`."""
    return {name: set(getattr(kind, part).__annotations__) for name, kind in kinds.KINDS.items()}


def test_there_is_one_old_manifest_of_each_kind():
    later = {"prove"}  # kinds that 0.1 did not have
    assert {json.loads(path.read_text("utf-8"))["stage"] for path in OLD} == set(kinds.KINDS) - later


@pytest.mark.parametrize("path", OLD, ids=lambda path: path.stem)
def test_manifests_of_version_0_1_are_read(path):
    text = path.read_text("utf-8")
    found = manifests.parse(text, path)
    assert json.loads(found.to_json()) == json.loads(text)
    assert set(found.metrics) <= fields("metrics")[found.stage]
    assert set(found.details) <= fields("details")[found.stage]
    settings = configs.to_dict(configs.recorded({k: value for k, value in found.config.items() if k != "options"}))
    assert settings["model"] == settings["model"] | found.config["model"]
    assert settings["train"]["iterations"] == found.config["train"]["iterations"]


@pytest.mark.parametrize("part", ["metrics", "details"])
def test_the_document_lists_the_fields_of_every_kind(part):
    section = DOCUMENT.partition(f"## {part.capitalize()}")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([a-z-]+)`(?:, `([a-z-]+)`)? \| (.*?) \|", section, flags=re.MULTILINE)
    listed = {kind: set(re.findall(r"`(\w+)`", names)) for *some, names in rows for kind in some if kind}
    assert listed == {kind: names for kind, names in fields(part).items() if names}


def test_the_document_lists_the_kinds():
    row = next(line for line in DOCUMENT.splitlines() if line.startswith("| `stage` | str |"))
    assert set(re.findall(r"`([a-z-]+)`", row.partition("|")[2].partition("| str |")[2])) == set(kinds.KINDS)
