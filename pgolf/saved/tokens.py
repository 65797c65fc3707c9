"""Readers of a tokenize stage: token streams, the held-out slice, bytes per token, the tokenizer."""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from pgolf import data
from pgolf.config import Config
from pgolf.data import Source
from pgolf.errors import PgolfError
from pgolf.store import kinds
from pgolf.store.manifest import Input
from pgolf.store.records import TokenizeDetails, TrainDetails
from pgolf.store.stage_directory import Stage
from pgolf.tokens.byte_counts import ByteTable
from pgolf.tokens.encode import encode_documents as encode_all
from pgolf.tokens.shards import TokenStream
from pgolf.tokens.tokenizer import Tokenizer
from pgolf.training.holdout import Holdout

_PREFIX = {"train": f"{kinds.TRAIN_SHARDS}_", "val": f"{kinds.VAL_SHARDS}_"}


def open_split(stage: Stage, split: str) -> TokenStream:
    """The verified `train` or `val` tokens of a tokenize stage, memory-mapped."""
    return TokenStream.open(_shards(stage, _PREFIX[split]))


def holdout_of(stage: Stage) -> Holdout:
    """The train tokens of a stage's run, with the slice that its training held out cut off.

    Raises PgolfError when neither a train nor a tokenize stage is in reach."""
    held_out = stage.ancestor("train").manifest.details_as(TrainDetails)["holdout_tokens"]
    return Holdout.recorded(open_split(stage.ancestor("tokenize"), "train"), held_out)


def token_bytes(stage: Stage) -> np.ndarray:
    """Original bytes of each val token, aligned with `open_split(stage, "val")`: int64 (n,).

    From the sidecar where there is one, or else, on registered shards, by the table per piece.
    """
    tokens = open_split(stage, "val")
    paths = [path for prefix in (kinds.VAL_BYTES, kinds.CASEOPS_VAL_BYTES) for path in stage.files(f"{prefix}_")]
    if not paths:
        return ByteTable.from_tokenizer(tokenizer_of(stage)).count_stream(tokens)
    counts = TokenStream.open(paths)[:].astype(np.int64)
    if len(counts) != len(tokens):
        raise PgolfError(f"{stage.path}: {len(tokens)} val tokens but {len(counts)} byte counts; rerun tokenize")
    return counts


def tokenizer_file(stage: Stage) -> Path:
    """The tokenizer of a stage: its own file, or that of the tokenize stage it comes from."""
    holder = stage if kinds.TOKENIZER in stage.manifest.outputs else stage.ancestor("tokenize")
    return holder.file(kinds.TOKENIZER)


def tokenizer_of(stage: Stage) -> Tokenizer:
    return Tokenizer.open(tokenizer_file(stage))


def with_bos(config: Config, stage: Stage) -> Config:
    """The configuration with `model.bos_id` set to the BOS of the stage's tokenizer, which documents begin with.

    Manifests of before this detail existed come from tokenizers whose BOS is the default.
    """
    bos_id = int(stage.manifest.details_as(TokenizeDetails).get("bos_id", config.model.bos_id))
    return dataclasses.replace(config, model=dataclasses.replace(config.model, bos_id=bos_id))


def input_of(item: Source) -> Input:
    """The manifest entry of documents as an input."""
    path = item.name if item.kind == "url" else Path(item.name).resolve().as_posix()
    return Input(kind=item.kind, path=path, sha256=item.sha256, bytes=item.bytes)


def recorded_documents(stage: Stage, role: str) -> Iterator[bytes]:
    """The documents that a stage names as its inputs `role:0`, `role:1`, ..., in that order, read once more.

    Raises PgolfError when one is gone or has changed. Nothing comes out where the stage names none.
    """
    manifest = stage.manifest
    numbers = sorted(int(key.partition(":")[2]) for key in manifest.inputs if key.partition(":")[0] == role)
    entries = [manifest.inputs[f"{role}:{number}"] for number in numbers]
    sources = [data.source(entry.path) for entry in entries]
    for source, entry in zip(sources, entries, strict=True):
        if source.sha256 != entry.sha256:
            raise PgolfError(f"{source.name} has changed since {stage.path} was made from it")
    field = str(manifest.config.get("options", {}).get("text_field", "text"))
    for source in sources:
        yield from data.documents(source, field)


def encode_documents(
    stage: Stage, documents: Iterable[bytes], threads: int = 2
) -> tuple[np.ndarray, np.ndarray, bool] | None:
    """Other documents encoded with the tokenizer of a run; None when they contain no text.

    Returns tokens uint16 (n,), original bytes of each int64 (n,), and whether every document comes back exactly.
    """
    batches = list(encode_all(tokenizer_of(stage), documents, with_bytes=True, threads=threads))
    if not sum(batch.bytes for batch in batches):
        return None
    counts = [batch.token_bytes for batch in batches if batch.token_bytes is not None]
    lossless = not any(batch.lossy_documents for batch in batches)
    return np.concatenate([batch.tokens for batch in batches]), np.concatenate(counts).astype(np.int64), lossless


def _shards(stage: Stage, prefix: str) -> list[Path]:
    names = sorted(name for name in stage.manifest.outputs if name.startswith(prefix))
    names = [name for name in names if not name.startswith(kinds.CASEOPS_VAL_BYTES)]  # it begins like `fineweb_val_`
    if not names:
        raise PgolfError(f"{stage.path} has no {prefix}*.bin")
    return [stage.file(name) for name in names]
