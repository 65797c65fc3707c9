"""What every command keeps: one JSON object on stdout with --json, a whole stage or none when it is cut short."""

import json
import shutil
import signal

import pytest
from typed import SMALL, assignments, pgolf, snapshot

from cli import activity

resource = pytest.importorskip("resource", reason="limits on file size are Unix's")

STAGES = ("ema-finalize", "quantize", "eval-sliding", "eval-ttt", "package")


@pytest.mark.parametrize("command", ["inspect", "budget", *STAGES])
def test_one_json_object(made, tmp_path, command):
    words = ["--artifacts", made, "--run", "tiny"]
    if command in STAGES:
        source = {"ema-finalize": "train", "quantize": "ema-finalize"}.get(command, "quantize")
        words = ["--artifacts", tmp_path, "--from", made / "tiny" / source]
    result = pgolf(command, *words, "--json")
    assert result.exit_code == 0, result.output
    assert isinstance(json.loads(result.stdout), dict)
    if command in STAGES:
        assert json.loads(result.stdout)["stage"] == command


@pytest.fixture
def interrupting(monkeypatch):
    """Ctrl-C at the first sign of progress."""
    monkeypatch.setattr(activity.Task, "update", lambda self, *arguments, **named: signal.raise_signal(signal.SIGINT))


@pytest.mark.parametrize("command", STAGES)
def test_ctrl_c_leaves_nothing_half_written(copy, interrupting, command):
    before = snapshot(copy)
    result = pgolf(command, "--artifacts", copy, "--run", "tiny", "--name", "cut", "--json")
    assert result.exit_code == 130, result.output
    assert json.loads(result.stdout)["exit_code"] == 130
    assert snapshot(copy) == before


def test_ctrl_c_in_tokenize_leaves_no_run(texts, tmp_path, interrupting):
    result = pgolf("tokenize", texts[0], "--artifacts", tmp_path / "artifacts", *assignments(*SMALL))
    assert result.exit_code == 130, result.output
    assert not (tmp_path / "artifacts").exists()


def test_ctrl_c_in_training_keeps_a_checkpoint(made, tmp_path, monkeypatch):
    words = ["train", "--from", made / "tiny" / "tokenize", "--artifacts", tmp_path, *assignments(*SMALL)]
    words += ["--set", "train.log_every=1"]
    with monkeypatch.context() as patch:
        patch.setattr(activity.Task, "update", lambda self, *arguments, **named: signal.raise_signal(signal.SIGINT))
        result = pgolf(*words)
    assert result.exit_code == 130, result.output
    assert not (tmp_path / "default" / "train").exists()
    assert (tmp_path / "default" / "train.partial").is_dir()
    result = pgolf(*words, "--json")
    assert result.exit_code == 0, result.output
    assert "continuing at step 1" in result.stderr
    assert json.loads(result.stdout)["metrics"]["iterations"] == 4


@pytest.fixture
def full_disk():
    """No file may grow beyond 2,000 bytes. Python leaves the signal for it ignored, so that writing raises OSError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_no_half_of_a_file_to_send(made, tmp_path, full_disk):
    result = pgolf("share", "tiny", "--out", tmp_path / "sent.json", "--artifacts", made)
    assert result.exit_code == 2, result.output
    assert "File too large" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["tokenize", "train", "ema-finalize", "quantize", "package"])
def test_a_full_disk_is_one_line_and_leaves_nothing(made, texts, tmp_path, full_disk, command):
    source = {"train": "tokenize", "ema-finalize": "train", "quantize": "ema-finalize", "package": "quantize"}
    words = texts[:1] if command == "tokenize" else ["--from", made / "tiny" / source[command]]
    result = pgolf(command, *words, "--artifacts", tmp_path / "artifacts", *assignments(*SMALL))
    shutil.rmtree(tmp_path / "artifacts" / "default" / "train.partial", ignore_errors=True)  # resumable: it stays
    assert result.exit_code == 2, result.output or repr(result.exception)
    assert "File too large" in result.stderr
    assert not list((tmp_path / "artifacts").glob("default/[!.]*"))


def test_a_model_of_short_contexts_compresses(copy, texts, tmp_path):
    where = ["--artifacts", copy, "--run", "tiny"]
    packed, back = tmp_path / "val.pgt", tmp_path / "back"
    result = pgolf("compress", texts[1], "--output", packed, "--json", *where)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["bytes"] == packed.stat().st_size
    link = tmp_path / "link"
    link.symlink_to("nowhere")
    assert pgolf("decompress", packed, "--output", link, *where).exit_code == 2
    assert pgolf("decompress", packed, "--output", back, *where).exit_code == 0
    assert back.read_bytes() == texts[1].read_bytes()
    assert link.is_symlink()


def test_the_page_of_a_lineage_file_is_named_in_json(made, tmp_path):
    file = tmp_path / "tiny.lineage.json"
    assert pgolf("share", "tiny", "--out", file, "--artifacts", made).exit_code == 0
    result = pgolf("report", file, "--json")
    assert json.loads(result.stdout) == {"path": str(tmp_path / "tiny.lineage.html")}
    assert "quantize" in (tmp_path / "tiny.lineage.html").read_text()
