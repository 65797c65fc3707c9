"""`pgolf compare` as typed: names that lead nowhere are one line and exit code 2."""

import json

import pytest
from typer.testing import CliRunner

from cli.app import app
from pgolf.errors import PgolfError
from stages.reports import compare


def test_a_name_that_leads_nowhere(tmp_path):
    result = CliRunner().invoke(app, ["compare", "old", "new", "--artifacts", str(tmp_path), "--json"])
    assert result.exit_code == 2
    assert "no run of that name" in json.loads(result.stdout)["error"]


def test_a_run_without_evaluations(tmp_path):
    (tmp_path / "old").mkdir()
    result = CliRunner().invoke(app, ["compare", "old", "old", "--artifacts", str(tmp_path), "--json"])
    assert result.exit_code == 2
    assert "no eval-ttt and no eval-sliding" in json.loads(result.stdout)["error"]


def test_a_name_is_a_path_before_it_is_a_pattern(tmp_path, monkeypatch):
    artifacts = tmp_path / "runs [v2]"
    for name in ("a[1]", "a1", "a?", "a,b", "other"):
        (artifacts / name).mkdir(parents=True)
    monkeypatch.chdir(artifacts)

    def found(names):
        monkeypatch.setattr(compare, "_evaluation", lambda path, label: path.name)
        return compare.find(names, artifacts, None)

    assert found("a[1]") == ["a[1]"]
    assert found("a?") == ["a?"]
    assert found("a,b") == ["a,b"]
    assert found("a1,other") == ["a1", "other"]
    assert found(str(artifacts / "a*")) == ["a,b", "a1", "a?", "a[1]"]
    assert found("a[*") == ["a[1]"]
    assert found(".") == [""]
    with pytest.raises(PgolfError, match="no stage directory and no run of that name"):
        found("[ab]1")
