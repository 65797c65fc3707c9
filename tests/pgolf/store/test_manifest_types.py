"""A manifest whose values are of another type than documented is refused in one line."""

import json
from pathlib import Path

import pytest

from pgolf.errors import PgolfError
from pgolf.store import manifest as manifests

GOOD = {
    "schema": 1, "stage": "train", "name": "train", "pgolf": {}, "command": ["pgolf"], "config": {}, "metrics": {},
    "inputs": {"tokens": {"kind": "stage", "path": "../tokenize", "sha256": "00", "stage": "tokenize", "name": "a"}},
    "outputs": {"sub/a.bin": {"bytes": 1, "sha256": "00"}},
    "environment": {}, "seed": 1, "started": "2026", "seconds": 1,
}  # fmt: skip


def test_a_good_one_is_read() -> None:
    found = manifests.parse(json.dumps(GOOD), Path("m"))
    assert found.inputs["tokens"].bytes is None
    assert found.outputs["sub/a.bin"].bytes == 1
    assert found.seconds == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": "1"}, "seed is '1'"),
        ({"seed": True}, "seed is True"),
        ({"stage": None}, "stage is None"),
        ({"seconds": []}, r"seconds is \[\]"),
        ({"config": []}, r"config is \[\]"),
        ({"started": 5}, "started is 5"),
        ({"inputs": {"a": {"kind": "file", "path": 3, "sha256": "00"}}}, "path is 3"),
        ({"inputs": {"a": []}}, "damaged"),
        ({"outputs": {"a": {"bytes": "1", "sha256": "00"}}}, "bytes is '1'"),
        ({"outputs": {"../a": {"bytes": 1, "sha256": "00"}}}, r"'\.\./a' does not lie in it"),
        ({"outputs": {"/etc/a": {"bytes": 1, "sha256": "00"}}}, "'/etc/a' does not lie in it"),
        ({"metrics": {"a": float("nan")}}, "NaN is not a number"),
        ({"name": "\ud800"}, "is not a pgolf manifest"),
        ({"other": 1}, "damaged"),
        ({"schema": 2}, "has schema 2"),
    ],
)
def test_another_type_is_refused(change: dict, says: str) -> None:
    with pytest.raises(PgolfError, match=says) as error:
        manifests.parse(json.dumps(GOOD | change), Path("m"))
    assert "\n" not in str(error.value)


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(PgolfError, match="is not a pgolf manifest"):
        manifests.parse(json.dumps(GOOD)[:-1] + ', "details": {"a": ' + "[" * 100_000 + "]" * 100_000 + "}}", Path("m"))


def test_a_number_that_is_too_large_is_refused() -> None:
    with pytest.raises(PgolfError, match="is not a pgolf manifest"):
        manifests.parse(json.dumps(GOOD).replace('"metrics": {}', '"metrics": {"a": 1e999}'), Path("m"))
