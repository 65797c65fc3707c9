"""What other stages need of a tokenize stage: its token streams, the bytes of its val tokens, its tokenizer."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pgolf import data
from pgolf.config import Config
from pgolf.errors import PgolfError
from pgolf.store.stage_directory import Stage
from pgolf.tokens.byte_counts import ByteTable
from pgolf.tokens.encode import encode_documents as encode_all
from pgolf.tokens.shards import TokenStream
from pgolf.tokens.tokenizer import Tokenizer

_PREFIX = {"train": "fineweb_train_", "val": "fineweb_val_"}
_VAL_BYTES = "fineweb_val_bytes_"


def open_split(stage: Stage, split: str) -> TokenStream:
    """The verified `train` or `val` tokens of a tokenize stage, memory-mapped."""
    return TokenStream.open(_shards(stage, _PREFIX[split]))


def token_bytes(stage: Stage) -> np.ndarray:
    """Original bytes of each val token, aligned with `open_split(stage, "val")`: int64 (n,).

    From the sidecar where there is one, or else, on registered shards, by the table per piece.
    """
    tokens = open_split(stage, "val")
    paths = stage.files(_VAL_BYTES)
    if not paths:
        return ByteTable.from_tokenizer(tokenizer_of(stage)).count_stream(tokens)
    counts = TokenStream.open(paths)[:].astype(np.int64)
    if len(counts) != len(tokens):
        raise PgolfError(f"{stage.path}: {len(tokens)} val tokens but {len(counts)} byte counts; rerun tokenize")
    return counts


def tokenizer_of(stage: Stage) -> Tokenizer:
    """The tokenizer of a tokenize stage."""
    return Tokenizer.open(stage.file("tokenizer.model"))


def with_bos(config: Config, stage: Stage) -> Config:
    """The configuration with `model.bos_id` set to the BOS of the stage's tokenizer, which documents begin with.

    Manifests of before this detail existed come from tokenizers whose BOS is the default.
    """
    bos_id = int(stage.manifest.details.get("bos_id", config.model.bos_id))
    return dataclasses.replace(config, model=dataclasses.replace(config.model, bos_id=bos_id))


def encode_documents(
    stage: Stage, documents: Sequence[str | Path], text_field: str = "text", threads: int = 2
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Any other documents with the tokenizer of a run.

    Returns tokens uint16 (n,), original bytes of each int64 (n,), and whether every document comes back exactly.
    Raises PgolfError for missing or unreadable files, or when there is no text in them.
    """
    sources = [data.source(item) for item in documents]
    texts = (text for item in sources for text in data.documents(item, text_field))
    batches = list(encode_all(tokenizer_of(stage), texts, with_bytes=True, threads=threads))
    if not sum(batch.bytes for batch in batches):
        raise PgolfError(f"no text in {', '.join(item.name for item in sources)}")
    counts = [batch.token_bytes for batch in batches if batch.token_bytes is not None]
    lossless = not any(batch.lossy_documents for batch in batches)
    return np.concatenate([batch.tokens for batch in batches]), np.concatenate(counts).astype(np.int64), lossless


def _shards(stage: Stage, prefix: str) -> list[Path]:
    names = sorted(name for name in stage.manifest.outputs if name.startswith(prefix))
    if prefix != _VAL_BYTES:  # fineweb_val_bytes_* begins like fineweb_val_*
        names = [name for name in names if not name.startswith(_VAL_BYTES)]
    if not names:
        raise PgolfError(f"{stage.path} has no {prefix}*.bin")
    return [stage.file(name) for name in names]
