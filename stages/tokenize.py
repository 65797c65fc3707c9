"""The `tokenize` stage: documents in, challenge-format shards, a tokenizer and the bytes of every val token out.

Three ways: train a tokenizer on the train documents, use one that exists, or register shards that exist. Without
documents the corpus is Python's own documentation. Every document is decoded again and compared; a tokenizer that
changed text is named as lossy in `details.tokenizer.lossless` and every score computed with it can say so.
"""

import itertools
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pgolf import bytes as byte_counts
from pgolf import corpus, encode, shards
from pgolf import tokenizer as tokenizers
from pgolf.corpus import Source
from pgolf.corpus.split import fingerprint
from pgolf.errors import PgolfError
from pgolf.manifest import Input
from pgolf.store import Stage
from pgolf.tokenizer import Tokenizer
from stages.context import StageBuild, StageContext

TRAIN, VAL, VAL_BYTES = "fineweb_train", "fineweb_val", "fineweb_val_bytes"
TOKENIZER = "tokenizer.model"


@dataclass
class Counts:
    """What tokenizing one split found; goes into the manifest's details."""

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
    """Where the documents of both splits come from."""

    train: tuple[Source, ...]
    val: tuple[Source, ...]
    text_field: str
    val_fraction: float
    cache: list[bytes] = field(default_factory=list)

    @property
    def name(self) -> str:
        return ", ".join(item.name for item in self.train) or corpus.embedded_name()

    def split(self, wanted: str) -> Iterator[bytes]:
        """The documents of `train` or `val`, in order; a new pass over the files at each call."""
        if self.val:
            yield from self._all(self.val if wanted == "val" else self.train)
            return
        for document in self._all(self.train):
            if corpus.in_val(document, self.val_fraction) == (wanted == "val"):
                yield document

    def _all(self, sources: tuple[Source, ...]) -> Iterator[bytes]:
        if sources:
            for item in sources:
                yield from corpus.documents(item, self.text_field)
            return
        if not self.cache:  # parsing the standard library takes seconds, and it is read several times
            self.cache.extend(corpus.embedded_documents())
        yield from self.cache


def tokenize(
    context: StageContext,
    train: Sequence[str | Path] = (),
    val: Sequence[str | Path] = (),
    tokenizer: Path | None = None,
    shards: Path | None = None,
    text_field: str = "text",
) -> Stage:
    """Make the tokenize stage.

    train, val: files, folders or fsspec URLs; without `val` the documents are split by their hash, without either the
        embedded corpus is used.
    tokenizer: a SentencePiece model to use in place of training one.
    shards: a folder of shards in the challenge's format to register as they are; they need `tokenizer`, or a single
        `.model` file beside them.

    Raises PgolfError for missing or unreadable input, an empty split, or a vocabulary that the corpus cannot fill.
    """
    if shards is not None:
        if train or val:
            raise PgolfError("--shards registers a folder as it is: leave the documents out")
        return _register(context, shards, tokenizer)
    if val and not train:
        raise PgolfError("--val needs train documents too: pgolf tokenize TRAIN... --val VAL...")
    given = None if tokenizer is None else Tokenizer.open(tokenizer)
    sources = {
        f"{split}:{index}": corpus.source(item)
        for split, items in (("train", train), ("val", val))
        for index, item in enumerate(items)
    }
    inputs: dict[str, Stage | Path | Input] = {role: _entry(item) for role, item in sources.items()}
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
            build.details["trained"] = given is None
            build.details["corpus"] = texts.name
            build.details["train_documents_in_val"] = len(repeated)
            build.details["documents_per_second"] = round((train_counts.documents + val_counts.documents) / seconds, 1)
            build.metrics["tokens_per_second"] = round((train_counts.tokens + val_counts.tokens) / seconds, 1)
            _tell(context, build, used)
    return build.stage


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
    folder = build.writer.path(TOKENIZER).parent
    clock = time.monotonic()

    def watched() -> Iterator[bytes]:
        for document in texts.split(split):
            mark = fingerprint(document)
            if split == "val" or mark in other:
                seen.add(mark)
            yield document

    with (
        shards.ShardWriter(folder, TRAIN if split == "train" else VAL, limit) as tokens,
        context.reporter.progress(f"tokenize {split}") as progress,
    ):
        sidecar = shards.ShardWriter(folder, VAL_BYTES, limit) if split == "val" else None
        for batch in encode.encode_documents(used, watched(), sidecar is not None, context.runtime.threads):
            tokens.write(batch.tokens)
            if sidecar is not None and batch.token_bytes is not None:
                sidecar.write(batch.token_bytes)
            counts.add(batch)
            rate = counts.documents / (time.monotonic() - clock)
            progress.update(counts.documents, note=f"{rate:,.0f} documents/s  {counts.bytes:,} bytes")
        if sidecar is not None:
            sidecar.close()
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
    build.details |= {
        "vocab_size": used.vocab_size,
        "bos_id": used.bos_id,
        "lossless": lossy == 0,
        "lossy_documents": lossy,
        "changed_bytes": sum(count.changed_bytes for count in counts.values()),
        "caseops": None if used.caseops is None else used.caseops.name,
        "byte_fallback": used.byte_tokens is not None,
        "faults": byte_counts.faults(used),
    }
    build.details |= {split: count.describe() for split, count in counts.items()}


def _tell(context: StageContext, build: StageBuild, used: Tokenizer) -> None:
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
    columns = ("tokenize", "documents", "bytes", "tokens", "bytes/token", "changed")
    context.reporter.table(f"{build.details['corpus']}, {used.vocab_size} pieces", columns, rows)
    if not facts["lossless"]:
        context.reporter.message(
            f"lossy tokenizer: {facts['lossy_documents']:,} documents do not come back exactly, at least "
            f"{facts['changed_bytes']:,} bytes differ; scores count the documents' own bytes"
        )
    if build.details["train_documents_in_val"]:
        context.reporter.message(
            f"warning: {build.details['train_documents_in_val']:,} val documents are in train as well; "
            "a score on them says little"
        )
    invalid = sum(build.details[split]["invalid_documents"] for split in ("train", "val"))
    if invalid:
        context.reporter.message(f"{invalid:,} documents are not UTF-8; their invalid bytes are kept as they are")


def _register(context: StageContext, folder: Path, tokenizer: Path | None) -> Stage:
    """Take a folder of challenge-format shards as they are, as hard links where the file system can."""
    if not folder.is_dir():
        raise PgolfError(f"no such folder of shards: {folder}")
    files = {
        TRAIN: sorted(folder.glob(f"{TRAIN}_*.bin")),
        VAL: [path for path in sorted(folder.glob(f"{VAL}_*.bin")) if not path.name.startswith(VAL_BYTES)],
        VAL_BYTES: sorted(folder.glob(f"{VAL_BYTES}_*.bin")),
    }
    for split in (TRAIN, VAL):
        if not files[split]:
            raise PgolfError(f"{folder} has no {split}_*.bin")
    counts = {prefix: sum(map(shards.shard_tokens, paths)) for prefix, paths in files.items()}
    if files[VAL_BYTES] and counts[VAL_BYTES] != counts[VAL]:
        raise PgolfError(
            f"{folder}: the val shards have {counts[VAL]} tokens but {VAL_BYTES}_*.bin has {counts[VAL_BYTES]} counts"
        )
    models = sorted(folder.glob("*.model"))
    if tokenizer is None and len(models) == 1:
        tokenizer = models[0]
    if tokenizer is None:
        raise PgolfError(f"{folder} has no tokenizer beside its shards: name the one they were made with (--tokenizer)")
    used = Tokenizer.open(tokenizer)
    inputs: dict[str, Stage | Path | Input] = {f"shards:{path.name}": path for path in itertools.chain(*files.values())}
    inputs["tokenizer"] = tokenizer
    with context.build("tokenize", inputs, ("tokenizer",), {"shards": True}) as build:
        if build.existing is None:
            for path in itertools.chain(*files.values()):
                _link(path, build.writer.path(path.name))
            shutil.copyfile(tokenizer, build.writer.path(TOKENIZER))
            for prefix, split in ((TRAIN, "train"), (VAL, "val")):
                stream = shards.TokenStream.open(files[prefix])
                build.details[split] = _survey(context, stream, used, split)
            if files[VAL_BYTES]:
                build.details["val"]["bytes"] = _total(shards.TokenStream.open(files[VAL_BYTES]))
            else:
                val = shards.TokenStream.open(files[VAL])
                build.details["val"]["bytes"] = int(byte_counts.ByteTable.from_tokenizer(used).count(val[:]).sum())
            _describe(build, used, {})
            # No documents to compare with: what the tokenizer does to awkward texts decides.
            build.details |= {
                "lossless": used.lossless,
                "lossy_documents": None,
                "changed_bytes": None,
                "trained": False,
            }
            build.details["corpus"] = str(folder)
            build.details["bytes_from"] = "sidecar" if files[VAL_BYTES] else "table"
            build.metrics["tokens"] = counts[TRAIN] + counts[VAL]
    return build.stage


def _survey(context: StageContext, stream: shards.TokenStream, used: Tokenizer, split: str) -> dict[str, Any]:
    """Count documents and look for tokens that the tokenizer does not have."""
    documents = 0
    step = 1 << 22
    with context.reporter.progress(f"read {split}", len(stream)) as progress:
        for start in range(0, len(stream), step):
            part = stream[start : start + step]
            if int(part.max()) >= used.vocab_size:
                raise PgolfError(
                    f"{stream.name} holds token {int(part.max())}, but {used.name} has {used.vocab_size} pieces: "
                    "these shards were made with another tokenizer"
                )
            documents += int((part == used.bos_id).sum())
            progress.update(start + len(part))
    if not documents:
        raise PgolfError(f"{stream.name} has no BOS (token {used.bos_id}): documents must start with one")
    return {"documents": documents, "tokens": len(stream)}


def _total(stream: shards.TokenStream) -> int:
    step = 1 << 22
    return sum(int(stream[start : start + step].sum(dtype=np.int64)) for start in range(0, len(stream), step))


def _link(path: Path, target: Path) -> None:
    try:
        os.link(path.resolve(), target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(path, target)


def _entry(item: Source) -> Input:
    path = item.name if item.kind == "url" else Path(item.name).resolve().as_posix()
    return Input(kind=item.kind, path=path, sha256=item.sha256, bytes=item.bytes)
