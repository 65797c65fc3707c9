"""The README's commands, run in order as a new user would, on a text and a model small enough for a test.

Only what takes minutes is made small: a command that trains gets `--set` assignments appended. The two make targets are
looked up instead of run (this very test is part of one of them).
"""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
import typed
import typer
from safetensors.torch import load_file
from typer.testing import CliRunner

import pgolf
from cli.app import app

ROOT = Path(__file__).resolve().parents[1]
SMALL = (
    *("tokenizer.vocab_size=400", "model.vocab_size=400", "model.dim=32", "model.num_layers=2", "model.num_heads=2"),
    *("model.num_kv_heads=1", "train.iterations=12", "train.seconds=0", "train.batch_tokens=512", "train.seq_len=64"),
    *("train.holdout_tokens=1000", "ttt.chunk_tokens=512", "quantize.calibration_tokens=2048"),
)


def commands() -> list[str]:
    text = (ROOT / "README.md").read_text("utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def documents(count: int, start: int) -> str:
    from pydoc_data.topics import topics

    text = " ".join(topics[name] for name in sorted(topics))
    pieces = [text[(start + i) * 700 : (start + i + 1) * 700] for i in range(count)]
    return "".join(json.dumps({"text": piece}) + "\n" for piece in pieces)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("readme")
    (path / "train.jsonl").write_text(documents(120, 0), "utf-8")
    (path / "val.jsonl").write_text(documents(4, 200), "utf-8")
    return path


def test_make_targets_exist():
    targets = {command.removeprefix("make ") for command in commands() if command.startswith("make ")}
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert targets == {"demo", "test"}
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)


def test_commands_run_in_order(folder, monkeypatch):
    monkeypatch.chdir(folder)
    ours = [command for command in commands() if command.startswith("pgolf ")]
    assert len(ours) > 8
    for command in ours:
        words = shlex.split(command)[1:]
        if typed.takes(words[0], "threads"):
            words += ["--threads", "1"]
        if words[0] in ("run", "train"):
            words += [word for assignment in SMALL for word in ("--set", assignment)]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, f"{command}\n{result.output}"
    run = folder / "artifacts" / "default"
    assert (run / "package" / "model.pgz").is_file()
    made_from = {
        ("eval-sliding", "model"): "quantize",
        ("eval-ttt", "model"): "quantize",
        ("package", "model"): "quantize",
        ("package", "eval-sliding"): "eval-sliding",
        ("package", "eval-ttt"): "eval-ttt",
        ("quantize@gptq", "model"): "ema-finalize",
        ("eval-sliding@gptq", "model"): "quantize@gptq",
        ("package@gptq", "model"): "quantize@gptq",
        ("package@gptq", "eval-sliding"): "eval-sliding@gptq",
        ("eval-sliding@other", "model"): "quantize",
        ("eval-ttt@other", "model"): "quantize",
        ("audit", "model"): "package",
        ("train@short", "tokens"): "tokenize",
    }
    manifests = {path.parent.name: json.loads(path.read_text()) for path in run.glob("[!.]*/manifest.json")}
    assert {key: manifests[key[0]]["inputs"][key[1]]["name"] for key in made_from} == made_from
    scores = manifests["package@gptq"]["details"]["claims"]["scores"]
    assert scores["sliding"]["bits_per_byte"] == manifests["eval-sliding@gptq"]["metrics"]["bits_per_byte"]
    assert manifests["eval-sliding@gptq"]["metrics"] != manifests["eval-sliding"]["metrics"]
    # None of it changed what the run's plain stages are made from or with.
    for command in ("train", "ema-finalize", "quantize", "eval", "eval-ttt", "package"):
        result = CliRunner().invoke(app, [command, "--threads", "1"])
        assert result.exit_code == 0, f"{command}\n{result.output}"
        assert " is up to date in " in result.stderr.replace("\n", " "), f"{command}\n{result.stderr}"
    assert {path.parent.name: json.loads(path.read_text()) for path in run.glob("[!.]*/manifest.json")} == manifests
    planned = CliRunner().invoke(app, ["run", "train.jsonl", "--val", "val.jsonl", "--dry-run", "--json"])
    assert {row["reason"] for row in json.loads(planned.stdout)["stages"]} == {"up to date"}
    changed = ["run", "train.jsonl", "--val", "val.jsonl", "--dry-run", "--json", "--set", "train.iterations=13"]
    planned = json.loads(CliRunner().invoke(app, changed).stdout)["stages"]
    assert [(row["label"], row["reason"]) for row in planned][:3] == [
        ("tokenize", "up to date"),
        ("train", "train.iterations 12 -> 13"),
        ("ema-finalize", "train runs again"),
    ]
    assert CliRunner().invoke(app, ["inspect"]).exit_code == 0
    # What the examples name besides the run: a checkpoint of another program, and a record.
    torch.save(load_file(run / "train" / "model.safetensors"), "final_model.pt")
    shutil.copytree(next(Path("records").iterdir()), "records/2026-03-17_NaiveBaseline")
    # The examples of every command's help, in the order of the commands.
    for command in typer.main.get_command(app).commands.values():
        for example in getattr(command, "examples", ()):
            if example in ours:  # run above
                continue
            small = typed.assignments(*SMALL) if example.split()[1] in ("run", "train") else []
            result = typed.pgolf(*shlex.split(example)[1:], *small)
            # The log of a text of one's own contradicts the challenge's counts.
            assert result.exit_code == (1 if example.startswith("pgolf screen") else 0), f"{example}\n{result.output}"
    # `pgolf clean short --force` was among them: the variant is gone, unless a report or a lineage was made from it.
    assert not (run / "train@short").exists() or "was made from it" in typed.pgolf("clean", "short").output


def test_python_examples_run(folder, monkeypatch, capsys):
    """After the commands: on the run that they made."""
    monkeypatch.chdir(folder)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), flags=re.M | re.S)
    assert len(blocks) == 1
    exec(blocks[0], {})
    shown = capsys.readouterr().out
    score = json.loads((folder / "artifacts/default/eval-ttt/manifest.json").read_text())["metrics"]["bits_per_byte"]
    assert f"'eval-ttt': {score}" in shown
    assert "bits  b" in shown
    assert "\nThe function" in shown


def test_help_fits_a_screen():
    program = typer.main.get_command(app)
    for name, command in program.commands.items():
        shown = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "80"}).output
        lines = shown.splitlines()
        assert max(map(len, lines)) <= 80, name
        assert len(lines) <= 23, f"{name}: {len(lines)} lines, and a terminal of 24 has one for the next command"
        assert "None" not in shown, name
        if command.common and "Options:" in shown:
            assert shown.index("Options:") < shown.index("Common options"), name
        assert command.hidden or command.examples, name
    shown = CliRunner().invoke(app, ["-h"]).output
    assert [line for line in shown.splitlines() if line.endswith(":")] == [
        "Start here:",
        "Stages:",
        "Look:",
        "Prove:",
        "Exchange:",
    ]
    assert len(shown.splitlines()) <= 39  # a screen of 40: a line for each of 28 commands
    assert max(map(len, shown.splitlines())) <= 80
    assert CliRunner().invoke(app, []).output == shown
    assert CliRunner().invoke(app, ["--version"]).output == f"pgolf {pgolf.__version__}\n"


def test_links_lead_somewhere():
    text = (ROOT / "README.md").read_text("utf-8")
    missing = [link for link in re.findall(r"\]\(([^)#:]+)\)", text) if not (ROOT / link).exists()]
    assert not missing
