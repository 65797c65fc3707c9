"""A tiny run of the whole chain, made once, for the tests of what comes after it."""

import json
from pathlib import Path

import pytest

from pgolf import config as configs
from pgolf import runtime as runtimes
from pgolf.progress import Silent
from stages.context import StageContext
from stages.run import Chain, run

SETTINGS = {
    "tokenizer": {"vocab_size": 384},
    "model": {"vocab_size": 384, "dim": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "mlp_ratio": 2.0},
    "train": {
        "iterations": 6,
        "batch_tokens": 256,
        "seq_len": 32,
        "compile": False,
        "log_every": 1,
        "holdout_tokens": 500,
    },
    "quantize": {"method": "trellis", "calibration_tokens": 1024, "distill_steps": 4, "distill_tokens": 256},
    "evaluate": {"stride": 16, "canonical": True},
    "ttt": {"chunk_tokens": 512, "epochs": 1},
}


def write_documents(folder: Path) -> tuple[Path, Path]:
    """A train and a val file of English from the language reference."""
    from pydoc_data.topics import topics

    names = sorted(topics)
    paths = folder / "train.jsonl", folder / "val.jsonl"
    texts = [topics[name][:3000] for name in names[:14]], [topics[name][:900] for name in names[14:16]]
    for path, some in zip(paths, texts, strict=True):
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in some), "utf-8")
    return paths


def make_context(run: Path, **changes: object) -> StageContext:
    """A context on one CPU thread that says nothing; `changes` are sections of the configuration."""
    return StageContext(
        run=run,
        config=configs.from_dict({**SETTINGS, **changes}),
        runtime=runtimes.choose("cpu", 1, compile=False),
        reporter=Silent(),
        command=("pgolf",),
    )


@pytest.fixture
def context():
    """Makes a context for a run directory; see `make_context`."""
    return make_context


@pytest.fixture(scope="session")
def documents(tmp_path_factory) -> tuple[Path, Path]:
    return write_documents(tmp_path_factory.mktemp("documents"))


@pytest.fixture(scope="session")
def chain(tmp_path_factory, documents) -> Chain:
    """Every stage of a finished run. Do not change its folders."""
    folder = tmp_path_factory.mktemp("artifacts") / "tiny"
    return run(make_context(folder), train=[documents[0]], val=[documents[1]])
