"""The `tokenize` stage: documents in, challenge-format shards, a tokenizer and the bytes of every val token out.

Three ways: train a tokenizer on the train documents, use one that exists, or register shards that exist. Without
documents the corpus is Python's own documentation. Every document is decoded and compared; a tokenizer that
changed text is recorded as lossy in `details.tokenizer.lossless`, and every score computed with it reports that.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pgolf import data
from pgolf.data import Source
from pgolf.data.split import fingerprint
from pgolf.errors import PgolfError
from pgolf.saved.tokens import input_of, recorded_documents
from pgolf.store import kinds
from pgolf.store.manifest import Input
from pgolf.store.records import TokenizeDetails, TokenizeMetrics
from pgolf.store.stage_directory import Stage
from pgolf.tokens import encode
from pgolf.tokens import shards as shard_files
from pgolf.tokens import tokenizer as tokenizers
from pgolf.tokens.tokenizer import Tokenizer
from stages.context import StageBuild, StageContext
from stages.register import register_folder, register_hub
from stages.views.token_files import TOKENIZER, TRAIN, VAL, byte_counts_prefix, tokenizer_facts


@dataclass
class Counts:
    """Counts of one tokenized split, for the manifest's details."""

    documents: int = 0
    bytes: int = 0
    tokens: int = 0
    lossy_documents: int = 0
    changed_bytes: int = 0
    invalid_documents: int = 0

    def add(self, batch: encode.Encoded) -> None:
        self.documents += batch.documents
        self.bytes += batch.bytes
        self.tokens += len(batch.tokens)
        self.lossy_documents += batch.lossy_documents
        self.changed_bytes += batch.changed_bytes
        self.invalid_documents += batch.invalid_documents

    def describe(self) -> dict[str, Any]:
        return asdict(self) | {"bytes_per_token": round(self.bytes / self.tokens, 6) if self.tokens else 0.0}


@dataclass(frozen=True)
class _Corpus:
    """The sources of the documents of both splits."""

    train: tuple[Source, ...]
    val: tuple[Source, ...]
    text_field: str
    val_fraction: float
    cache: list[tuple[bytes, bool]] = field(default_factory=list)
    """The embedded corpus, each document with whether it is val."""

    @property
    def name(self) -> str:
        return ", ".join(item.name for item in self.train) or data.embedded_name()

    def split(self, wanted: str) -> Iterator[bytes]:
        """The documents of `train` or `val`, in order; a new pass over the files at each call."""
        if self.val:
            yield from self._all(self.val if wanted == "val" else self.train)
            return
        parts: Iterator[tuple[bytes, bool]]
        if self.train:
            parts = ((item, data.in_val(item, self.val_fraction)) for item in self._all(self.train))
        else:
            parts = iter(self._embedded())
        yield from (document for document, is_val in parts if is_val == (wanted == "val"))

    def _all(self, sources: tuple[Source, ...]) -> Iterator[bytes]:
        for item in sources:
            yield from data.documents(item, self.text_field)

    def _embedded(self) -> list[tuple[bytes, bool]]:
        if not self.cache:  # parsing the standard library takes seconds, and it is read several times
            self.cache.extend(data.embedded_split(self.val_fraction))
        return self.cache


def tokenize(
    context: StageContext,
    train: Sequence[str | Path] = (),
    val: Sequence[str | Path] = (),
    tokenizer: Path | None = None,
    shards: Path | None = None,
    text_field: str = "text",
    hub: str | None = None,
    variant: str | None = None,
    train_shards: int | None = None,
) -> Stage:
    """Make the tokenize stage.

    train, val: files, folders or fsspec URLs; without `val` the documents are split by their hash, without either the
        embedded corpus is used.
    tokenizer: a SentencePiece model to use in place of training one.
    shards: a folder of shards in the challenge's format to register as they are; they need `tokenizer`, or a single
        `.model` file next to them.
    hub: a dataset repository with the challenge's published shards; see `register_hub` for `variant` and
        `train_shards`.

    Raises PgolfError for missing or unreadable input, an empty split, or a vocabulary that the corpus cannot fill.
    """
    if (shards is not None or hub is not None) and (train or val):
        raise PgolfError(
            f"{'--shards' if hub is None else '--hub'} registers shards as they are: leave the documents out"
        )
    if hub is not None:
        if shards is not None or tokenizer is not None:
            raise PgolfError("--hub includes shards and tokenizer: leave --shards and --tokenizer out")
        return register_hub(context, hub, variant, train_shards)
    if shards is not None:
        return register_folder(context, shards, tokenizer)
    if val and not train:
        raise PgolfError("--val needs train documents too: pgolf tokenize TRAIN... --val VAL...")
    given = None if tokenizer is None else Tokenizer.open(tokenizer)
    if context.config.tokenizer.fuse_operators:
        if given is None:
            raise PgolfError("tokenizer.fuse_operators changes a given CaseOps tokenizer: name one with --tokenizer")
        given = given.with_fused_operators()
    sources = {
        f"{split}:{index}": data.source(item)
        for split, items in (("train", train), ("val", val))
        for index, item in enumerate(items)
    }
    inputs: dict[str, Stage | Path | Input] = {role: input_of(item) for role, item in sources.items()}
    if tokenizer is not None:
        inputs["tokenizer"] = tokenizer
    config = context.config.tokenizer
    texts = _Corpus(
        train=tuple(item for role, item in sources.items() if role.startswith("train")),
        val=tuple(item for role, item in sources.items() if role.startswith("val")),
        text_field=text_field,
        val_fraction=config.val_fraction,
    )
    options = {"text_field": text_field, "corpus": None if sources else texts.name}
    with context.build("tokenize", inputs, ("tokenizer",), options) as build:
        if build.existing is None:
            used = given or _train_tokenizer(context, texts)
            build.writer.path(TOKENIZER).write_bytes(used.proto)
            clock = time.monotonic()
            val_counts, known = _write_split(context, build, used, texts, "val", frozenset())
            train_counts, repeated = _write_split(context, build, used, texts, "train", known)
            seconds = time.monotonic() - clock
            _describe(build, used, {"train": train_counts, "val": val_counts})
            _write_proof(build.writer.path(kinds.ROUND_TRIPS), used, {"train": train_counts, "val": val_counts})
            build.details |= TokenizeDetails(
                trained=given is None,
                corpus=texts.name,
                train_documents_in_val=len(repeated),
                documents_per_second=round((train_counts.documents + val_counts.documents) / seconds, 1),
            )
            speed = round((train_counts.tokens + val_counts.tokens) / seconds, 1)
            build.metrics |= TokenizeMetrics(tokens_per_second=speed)
            for item in sources.values():
                if item.kind != "file":
                    context.reporter.message(item.describe())
            _report_tokenizer(context, build, used)
    return build.stage


def original_documents(stage: Stage, split: str) -> Iterator[bytes]:
    """The documents of a split of a tokenize stage, from the files that it names. Raises PgolfError when they are gone
    or changed, or the stage names none."""
    roles = {role.partition(":")[0] for role in stage.manifest.inputs}
    if "train" not in roles:
        raise PgolfError(f"{stage.path} was not made from documents")
    if "val" in roles:
        yield from recorded_documents(stage, split)
        return
    fraction = float(stage.manifest.config["tokenizer"]["val_fraction"])
    for document in recorded_documents(stage, "train"):
        if data.in_val(document, fraction) == (split == "val"):
            yield document


def _train_tokenizer(context: StageContext, texts: _Corpus) -> Tokenizer:
    config = context.config.tokenizer
    with context.reporter.progress("read train") as progress:
        sample = _sample(texts.split("train"), config.train_bytes, lambda size: progress.update(size, note="bytes"))
    if not any(sample):
        raise _empty(texts, "train")
    with context.reporter.progress("train pieces"):
        return tokenizers.train(sample, config)


def _sample(documents: Iterable[bytes], limit: int, on_bytes: Any) -> list[bytes]:
    """Documents of at most `limit` bytes together, spread evenly: every 2nd, 4th, 8th, ... when they are more."""
    kept: list[tuple[int, bytes]] = []
    size = total = 0
    stride = 1
    for index, document in enumerate(documents):
        total += len(document)
        if index % 256 == 0:
            on_bytes(total)
        if index % stride == 0:
            kept.append((index, document))
            size += len(document)
        while size > limit and len(kept) > 1:
            stride *= 2
            kept = [item for item in kept if item[0] % stride == 0]
            size = sum(len(item[1]) for item in kept)
    return [document for _, document in kept]


def _write_split(
    context: StageContext, build: StageBuild, used: Tokenizer, texts: _Corpus, split: str, other: frozenset[int]
) -> tuple[Counts, frozenset[int]]:
    """Encode one split into shards; returns its counts and the fingerprints of its documents (train: those in val)."""
    counts = Counts()
    seen: set[int] = set()
    limit = context.config.tokenizer.shard_tokens
    folder = build.writer.payload
    clock = time.monotonic()

    def watched() -> Iterator[bytes]:
        for document in texts.split(split):
            mark = fingerprint(document)
            if split == "val" or mark in other:
                seen.add(mark)
            yield document

    with (
        shard_files.ShardWriter(folder, TRAIN if split == "train" else VAL, limit) as tokens,
        context.reporter.progress(f"tokenize {split}") as progress,
    ):
        sidecar = shard_files.ShardWriter(folder, byte_counts_prefix(used), limit) if split == "val" else None
        for batch in encode.encode_documents(used, watched(), sidecar is not None, context.runtime.threads):
            tokens.write(batch.tokens)
            if sidecar is not None and batch.token_bytes is not None:
                sidecar.write(batch.token_bytes)
            counts.add(batch)
            rate = counts.documents / (time.monotonic() - clock)
            progress.update(counts.documents, note=f"{rate:,.0f} documents/s  {counts.bytes:,} bytes")
        if sidecar is not None:
            sidecar.close()
        for path in [*tokens.paths, *([] if sidecar is None else sidecar.paths)]:
            build.writer.add(path)
    if not counts.bytes:
        raise _empty(texts, split)
    return counts, frozenset(seen)


def _empty(texts: _Corpus, split: str) -> PgolfError:
    named = texts.val if split == "val" else texts.train
    if split == "val" and not texts.val:
        if not any(texts.split("train")):
            return PgolfError(f"the corpus is empty: no text in {texts.name}")
        return PgolfError(
            f"no document of {texts.name} falls into val: name some with --val, or raise tokenizer.val_fraction"
        )
    return PgolfError(f"the corpus is empty: no text for {split} in {', '.join(item.name for item in named)}")


def _describe(build: StageBuild, used: Tokenizer, counts: dict[str, Counts]) -> None:
    lossy = sum(count.lossy_documents for count in counts.values())
    build.details |= tokenizer_facts(used)
    build.details |= TokenizeDetails(
        lossless=lossy == 0,
        lossy_documents=lossy,
        changed_bytes=sum(count.changed_bytes for count in counts.values()),
    )
    build.details |= {split: count.describe() for split, count in counts.items()}


def _write_proof(path: Path, used: Tokenizer, counts: dict[str, Counts]) -> None:
    """Write what encoding and decoding every document showed of this tokenizer, for a reader without the text."""
    proof = {
        "tokenizer": TOKENIZER,
        "sha256": hashlib.sha256(used.proto).hexdigest(),
        "pieces": used.vocab_size,
        "lossless": not any(count.lossy_documents for count in counts.values()),
        "splits": {
            split: {
                "documents": count.documents,
                "bytes": count.bytes,
                "tokens": count.tokens,
                "round_trips": count.documents,  # `encode_documents` decodes every document and compares
                "changed_documents": count.lossy_documents,
                "changed_bytes": count.changed_bytes,
            }
            for split, count in counts.items()
        },
    }
    path.write_text(json.dumps(proof, indent=2) + "\n")


def _report_tokenizer(context: StageContext, build: StageBuild, used: Tokenizer) -> None:
    facts = build.details
    rows = [
        [
            split,
            f"{found['documents']:,}",
            f"{found['bytes']:,}",
            f"{found['tokens']:,}",
            f"{found['bytes_per_token']:.3f}",
            f"{found['lossy_documents']:,}",
        ]
        for split, found in ((split, build.details[split]) for split in ("train", "val"))
    ]
    columns = ("split", "documents", "bytes", "tokens", "bytes/token", "changed")
    train, val = build.details["train"], build.details["val"]
    context.reporter.result(
        f"tokenized {build.details['corpus']}: {train['documents']:,} train documents ({train['tokens']:,} tokens), "
        f"{val['documents']:,} val ({val['tokens']:,}), {used.vocab_size:,} pieces"
    )
    context.reporter.table("tokenized", columns, rows, detail=True)
    if not facts["lossless"]:
        context.reporter.message(
            f"lossy tokenizer: {facts['lossy_documents']:,} documents do not come back exactly, at least "
            f"{facts['changed_bytes']:,} bytes differ; scores count the documents' own bytes"
        )
    if build.details["train_documents_in_val"]:
        context.reporter.message(
            f"warning: documents in both train and val: {build.details['train_documents_in_val']:,}; "
            "a score on them means little"
        )
    invalid = sum(build.details[split]["invalid_documents"] for split in ("train", "val"))
    if invalid:
        context.reporter.message(f"{invalid:,} documents are not UTF-8; their invalid bytes are kept as they are")
