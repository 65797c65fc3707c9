"""One small run, made once by the commands themselves."""

import json
import shutil
from pathlib import Path

import pytest
from typed import SMALL, assignments, pgolf


@pytest.fixture(scope="session")
def texts(tmp_path_factory) -> tuple[Path, Path]:
    from pydoc_data.topics import topics

    folder = tmp_path_factory.mktemp("texts")
    names = sorted(topics)
    paths = folder / "train.jsonl", folder / "val.jsonl"
    for path, some, size in zip(paths, (names[:12], names[12:14]), (3000, 300), strict=True):
        path.write_text("".join(json.dumps({"text": topics[name][:size]}) + "\n" for name in some), "utf-8")
    return paths


@pytest.fixture(scope="session")
def made(tmp_path_factory, texts) -> Path:
    """The artifacts folder with a run `tiny` up to quantize. Do not change it; `copy` is for that."""
    artifacts = tmp_path_factory.mktemp("made")
    where = ["--artifacts", artifacts, "--run", "tiny"]
    for words in (
        ["tokenize", texts[0], "--val", texts[1], *assignments(*SMALL)],
        ["train"],
        ["ema-finalize"],
        ["quantize"],
    ):
        result = pgolf(*words, *where)
        assert result.exit_code == 0, f"{words}\n{result.output}"
    return artifacts


@pytest.fixture
def copy(made, tmp_path) -> Path:
    """A copy of `made` to change."""
    return Path(shutil.copytree(made, tmp_path / "artifacts"))
