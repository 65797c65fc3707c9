"""`pgolf compress` and `decompress` as a user types them: odd files come back, and every failure is one line and leaves
nothing."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from typed import SMALL, assignments, pgolf, snapshot

from cli import activity

resource = pytest.importorskip("resource", reason="limits on file size are Unix's")

FILES = {
    "empty.txt": b"",
    "odd.bin": b"\xff\xfe\0\r\n \xed\xa0\x80" + "▁ ﬁ\u0301".encode() + bytes(range(256)),
    "line": b"no line end " * 30,
}
LEARN = ["--ttt", "--set", "ttt.chunk_tokens=8", "--set", "ttt.output_lr=[]", "--set", "ttt.output_stream_lr=[]"]


@pytest.fixture
def here(made, tmp_path):
    """The words that name the run, after a command, and a folder with the files."""
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
    return ["--artifacts", made, "--run", "tiny"]


@pytest.mark.parametrize("learn", [[], LEARN])
@pytest.mark.parametrize("name", FILES)
def test_odd_files_come_back(here, tmp_path, name, learn):
    done = pgolf("compress", tmp_path / name, *here, *learn, "--json")
    assert done.exit_code == 0, done.output
    found, packed = json.loads(done.stdout), tmp_path / f"{name}.pgt"
    assert (found["path"], found["text_bytes"]) == (str(packed), len(FILES[name]))
    assert found["bytes"] == packed.stat().st_size
    (tmp_path / name).unlink()
    assert pgolf("decompress", packed, *here).exit_code == 0
    assert (tmp_path / name).read_bytes() == FILES[name]


def test_another_number_of_threads_changes_nothing(here, tmp_path, monkeypatch):
    import typed

    made = []
    for threads in ("1", "2"):
        monkeypatch.setattr(typed, "takes", lambda command, option: False)
        out = tmp_path / f"{threads}.pgt"
        assert pgolf("compress", tmp_path / "odd.bin", *here, "--output", out, "--threads", threads).exit_code == 0
        made.append(out.read_bytes())
    assert made[0] == made[1]


@pytest.mark.parametrize("command", ["compress", "decompress"])
def test_ctrl_c_leaves_nothing(here, tmp_path, monkeypatch, command):
    pgolf("compress", tmp_path / "odd.bin", *here, "--output", tmp_path / "a.pgt")
    before = snapshot(tmp_path)
    monkeypatch.setattr(activity.Task, "update", lambda self, *arguments, **named: signal.raise_signal(signal.SIGINT))
    file = tmp_path / ("odd.bin" if command == "compress" else "a.pgt")
    assert pgolf(command, file, *here).exit_code == 130
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("command", ["compress", "decompress"])
def test_a_full_disk_is_one_line_and_leaves_nothing(here, tmp_path, command):
    pgolf("compress", tmp_path / "odd.bin", *here, "--output", tmp_path / "a.pgt")
    before, (soft, hard) = snapshot(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        result = pgolf(command, tmp_path / ("odd.bin" if command == "compress" else "a.pgt"), *here)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert result.exit_code == 2, result.output
    assert "File too large; choose another place with --output" in result.stderr
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["compress", "."], "cannot read"),
        (["compress", "none"], "cannot read"),
        (["compress", "line", "--output", "odd.bin"], "is there already"),
        (["compress", "line", "--output", "line", "--force"], "is the input itself"),
        (["compress", "line", "--output", "/dev/full", "--force"], "is not a plain file"),
        (["compress", "line", "--output", "link", "--force"], "is not a plain file"),
        (["compress", "line", "--output", "nowhere/a.pgt"], "cannot write into"),
        (["decompress", "line"], "does not end in .pgt"),
        (["decompress", "line", "--output", "b"], "was not written by pgolf compress"),
        (["decompress", "a.pgt", "--output", "a.pgt", "--force"], "is the input itself"),
        (["decompress", "cut.pgt"], "was changed or truncated"),
        (["decompress", "empty.pgt"], "was not written by pgolf compress"),
        (["decompress", "a.pgt", "--from", "ema-finalize"], "was made with another model"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_changes_nothing(here, made, tmp_path, words, error, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pgolf("compress", "line", *here, "--output", "a.pgt")
    Path("cut.pgt").write_bytes(Path("a.pgt").read_bytes()[:-1])
    Path("empty.pgt").write_bytes(b"")
    Path("link").symlink_to("odd.bin")
    before = snapshot(tmp_path)
    words = [made / "tiny" / word if word == "ema-finalize" else word for word in words]
    result = pgolf(*words, *here)
    assert result.exit_code == 2, result.output
    assert error in result.stderr.replace("\n", " ")
    assert len(result.stderr.strip().splitlines()) == 1
    assert snapshot(tmp_path) == before


def test_the_package_of_another_tokenizer_is_refused(here, made, texts, tmp_path):
    pgolf("compress", tmp_path / "line", *here)
    other = tmp_path / "other"
    shutil.copytree(made, other)
    changed = other / "tiny" / "tokenize" / "tokenizer.model"
    if os.access(changed, os.W_OK):
        changed.write_bytes(changed.read_bytes() + b"\x0a\x00")
    result = pgolf(
        "decompress", tmp_path / "line.pgt", "--artifacts", other, "--run", "tiny", "--output", tmp_path / "b"
    )
    assert result.exit_code == 2
    assert "tokenizer.model was changed" in result.stderr
    assert not (tmp_path / "b").exists()


def test_learning_that_cannot_be_followed_is_refused(here, tmp_path):
    result = pgolf("compress", tmp_path / "line", *here, "--ttt", *assignments(*SMALL[-1:]))
    assert result.exit_code == 2
    assert "in chunks of 256 tokens cannot be followed token by token" in result.stderr.replace("\n", " ")
    assert not (tmp_path / "line.pgt").exists()
