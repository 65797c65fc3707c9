"""`pgolf compare` as typed: names that lead nowhere are one line and exit code 2."""

import json

from typer.testing import CliRunner

from cli.main import app


def test_a_name_that_leads_nowhere(tmp_path):
    result = CliRunner().invoke(app, ["compare", "old", "new", "--artifacts", str(tmp_path), "--json"])
    assert result.exit_code == 2
    assert "no run of that name" in json.loads(result.stdout)["error"]


def test_a_run_without_evaluations(tmp_path):
    (tmp_path / "old").mkdir()
    result = CliRunner().invoke(app, ["compare", "old", "old", "--artifacts", str(tmp_path), "--json"])
    assert result.exit_code == 2
    assert "no eval-ttt and no eval-sliding" in json.loads(result.stdout)["error"]
