"""The Python interface on a finished run."""

import runpy
import shutil
import sys
from pathlib import Path

import pytest
import typed

import pgolf
from cli.screen import plain
from pgolf.errors import PgolfError


def test_a_lone_package_scores_and_writes_as_pgolf_does(chain, tmp_path):
    package = tmp_path / "sent"
    shutil.copytree(chain.packaged.path, package)
    text = "The import statement combines two operations; it searches for a module."
    model = pgolf.load(package, "cpu", 1)
    document = tmp_path / "text.txt"
    document.write_text(text, "utf-8")
    scored = typed.pgolf(
        *("eval-sliding", "--from", package, "--documents", document, "--artifacts", tmp_path, "--run", "r", "--json")
    )
    assert scored.exit_code == 0, scored.output
    stage = pgolf.open_run(tmp_path / "r")
    assert stage.scores == {"eval-sliding": pytest.approx(model.bits_per_byte(text), abs=1e-6)}
    losses = model.token_losses(text)
    assert b"".join(loss.text for loss in losses) == text.encode()
    assert sum(loss.bits for loss in losses) / len(text) == pytest.approx(model.bits_per_byte(text))
    first, second = model.generate("The import", tokens=8, seed=2, count=2)
    assert first.startswith("The import")
    assert first != second
    said = typed.pgolf("sample", "The import", "--from", package, *("--tokens", 8, "--seed", 2, "--count", 2))
    assert said.stdout == plain(f"{first}\n---\n{second}\n")
    with pytest.raises(PgolfError, match="empty"):
        model.bits_per_byte("")
    refused = typed.pgolf("audit", "--from", package, "--artifacts", tmp_path, "--run", "r")
    assert f"pgolf verify {package} --val TEXT --audit" in refused.stderr


def test_runs_open_by_folder(chain):
    run = pgolf.open_run(chain.packaged.path.parent)
    assert run.scores["eval-ttt"] == chain.ttt_score.manifest.metrics["bits_per_byte"]
    assert run.load("train", "cpu", 1).stage.label == "train"
    with pytest.raises(PgolfError, match="has no stage nosuch; its stages: tokenize, train"):
        run.load("nosuch")
    with pytest.raises(PgolfError, match="holds no finished stage"):
        pgolf.open_run(chain.packaged.path / "nothing")


def test_the_tour_runs(chain, capsys, monkeypatch):
    run = chain.packaged.path.parent
    monkeypatch.setattr(sys, "argv", ["tour.py", str(run)])
    found = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "tour.py"))
    out = capsys.readouterr().out
    assert f"eval-ttt             {chain.ttt_score.manifest.metrics['bits_per_byte']:.4f} bits per byte" in out
    assert f"{found['full'].bits_per_byte(found['text']):.4f} before quantization" in out
    assert out.count("The function") >= 3
