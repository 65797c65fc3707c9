"""Commands as a user types them, run in this process."""

from pathlib import Path

import typer
from typer.testing import CliRunner

from cli.app import app

SMALL = (
    *("tokenizer.vocab_size=384", "model.vocab_size=384", "model.dim=16", "model.num_layers=2", "model.num_heads=2"),
    *("model.num_kv_heads=1", "train.iterations=4", "train.seconds=0", "train.batch_tokens=128", "train.seq_len=32"),
    *("train.compile=false", "train.holdout_tokens=500", "quantize.method=rtn", "ttt.chunk_tokens=256"),
)


def takes(command: str | Path, option: str) -> bool:
    """Whether a command has an option of that name."""
    found = typer.main.get_command(app).commands.get(str(command))
    return found is not None and any(parameter.name == option for parameter in found.params)


def pgolf(*words: str | Path):
    """Run `pgolf WORDS` and return typer's result; `--threads 1` is added, as the suite runs a worker per core."""
    return CliRunner().invoke(app, [*map(str, words), *(["--threads", "1"] if takes(words[0], "threads") else [])])


def assignments(*values: str) -> list[str]:
    return [word for value in values for word in ("--set", value)]


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file and folder below; two equal ones mean that nothing was written."""
    found = {}
    for path in sorted(folder.rglob("*")):
        facts = path.stat()
        # An untouched run's lock is opened by every command.
        found[str(path.relative_to(folder))] = (0, 0) if path.name == ".lock" else (facts.st_size, _time(path))
    return found


def _time(path: Path) -> int:
    return 0 if path.is_dir() else path.stat().st_mtime_ns
