"""Registering shards that exist as a `tokenize` stage: a folder's, or the challenge's published ones from the hub.

Nothing is converted. The files are hard links where the file system can (16 GB of shards take no second 16 GB), copies
where it cannot; their hashes go into the manifest either way. Without documents the bytes of val tokens come from a
sidecar next to the shards or, by the challenge's definition, from the table per piece.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pgolf.data import hub
from pgolf.errors import PgolfError
from pgolf.store.kinds import CASEOPS_VAL_BYTES, VAL_BYTES
from pgolf.store.manifest import Input
from pgolf.store.records import TokenizeDetails
from pgolf.store.stage_directory import Stage
from pgolf.tokens import byte_counts, shards
from pgolf.tokens.tokenizer import Tokenizer
from stages.context import StageContext
from stages.views.token_files import TOKENIZER, TRAIN, VAL, byte_counts_prefix, tokenizer_facts

ASK_BYTES = 2_000_000_000
"""A larger download is asked for, unless the number of shards was named."""


@dataclass(frozen=True)
class _Published:
    """Shards with the names they are to have, by split, and their tokenizer."""

    name: str
    files: Mapping[str, list[Path]]
    tokenizer: Path
    inputs: Mapping[str, Stage | Path | Input]
    options: Mapping[str, Any]
    details: Mapping[str, Any]


def register_folder(context: StageContext, folder: Path, tokenizer: Path | None) -> Stage:
    """Register a folder's shards. Raises PgolfError for a missing split, a bad shard or no tokenizer."""
    if not folder.is_dir():
        raise PgolfError(f"{folder} is not a folder")
    files = {
        TRAIN: sorted(folder.glob(f"{TRAIN}_*.bin")),
        VAL: [path for path in sorted(folder.glob(f"{VAL}_*.bin")) if not path.name.startswith(CASEOPS_VAL_BYTES)],
        VAL_BYTES: sorted(folder.glob(f"*{VAL_BYTES}_*.bin")),
    }
    for split in (TRAIN, VAL):
        if not files[split]:
            raise PgolfError(f"{folder} has no {split}_*.bin")
    models = sorted(folder.glob("*.model"))
    if tokenizer is None and len(models) == 1:
        tokenizer = models[0]
    if tokenizer is None:
        raise PgolfError(f"{folder} has no tokenizer (*.model): name the one the shards were made with (--tokenizer)")
    inputs: dict[str, Stage | Path | Input] = {"tokenizer": tokenizer}
    for split, paths in files.items():
        role = split.removeprefix("fineweb_")
        inputs |= {f"{role}:{index}": path for index, path in enumerate(paths)}
    return _register(context, _Published(str(folder), files, tokenizer, inputs, {"shards": True}, {}))


def register_hub(context: StageContext, repository: str, variant: str | None, train_shards: int | None) -> Stage:
    """Fetch the challenge's published shards and tokenizer, and register them.

    repository: the hub's `owner/name`, or a folder or fsspec URL with its layout. A download that was broken off goes
        on where it stopped; files that are here already are checked, not fetched again.
    variant: None: the one whose vocabulary is that of the preset or the settings named, or else the only one.
    train_shards: None: as many as the challenge's own script takes; a large download must then be agreed to.
    Raises PgolfError for a choice that is open or cannot be had, and for a download that is not agreed to.
    """
    if train_shards is not None and train_shards < 1:
        raise PgolfError(f"--train-shards is {train_shards}; training needs at least one")
    source = hub.open_repository(repository)
    settings = context.assignments  # None: a preset or a file was named
    named = settings is None or any(item.startswith("tokenizer.vocab_size=") for item in settings)
    vocabulary = context.config.tokenizer.vocab_size if named else None
    chosen = hub.select(source, variant, vocabulary, train_shards)
    count, total = len(chosen.train), chosen.bytes
    options = {"shards": True, "hub": repository, "variant": chosen.variant, "train_shards": count}
    what = f"{repository} {chosen.variant}: {count} of {chosen.train_available} train shards, {total / 1e9:.2f} GB"
    context.reporter.message(f"{what} with val")
    made = context.own("tokenize")
    here = not source.remote or (made is not None and made.manifest.config.get("options") == options)
    large = train_shards is None and total > ASK_BYTES and not here
    if large and not (context.ask and context.ask(f"Download {total / 1e9:.1f} GB?")):
        raise PgolfError(f"{what}: not downloaded; agree with --train-shards {count}, or name fewer")
    with context.reporter.progress("fetch shards", total) as progress:
        fetched = hub.fetch(source, chosen.files, lambda done, name: progress.update(done, total, name))
    files = {
        split: [fetched[file.path].local for file in part]
        for split, part in ((TRAIN, chosen.train), (VAL, chosen.val), (VAL_BYTES, chosen.val_bytes))
    }
    inputs: dict[str, Stage | Path | Input] = {
        item.name: Input(kind="url", path=item.url, sha256=item.content.sha256, bytes=item.content.bytes)
        for item in fetched.values()
    }
    details = TokenizeDetails(variant=chosen.variant, train_shards_published=chosen.train_available)
    tokenizer = fetched[chosen.tokenizer.path].local
    return _register(context, _Published(repository, files, tokenizer, inputs, options, details))


def _register(context: StageContext, published: _Published) -> Stage:
    files = published.files
    counts = {split: sum(map(shards.shard_tokens, paths)) for split, paths in files.items()}
    if files[VAL_BYTES] and counts[VAL_BYTES] != counts[VAL]:
        raise PgolfError(
            f"{published.name}: the val shards have {counts[VAL]} tokens but {VAL_BYTES}_*.bin has "
            f"{counts[VAL_BYTES]} counts"
        )
    used = Tokenizer.open(published.tokenizer)
    with context.build("tokenize", published.inputs, (), published.options) as build:
        if build.existing is None:
            for split, paths in files.items():
                for path in paths:
                    counts_name = f"{byte_counts_prefix(used)}_{path.name.rpartition('_')[2]}"
                    _link(path, build.writer.path(counts_name if split == VAL_BYTES else path.name))
            shutil.copyfile(published.tokenizer, build.writer.path(TOKENIZER))
            val = shards.TokenStream.open(files[VAL])
            build.details |= tokenizer_facts(used) | {
                # There are no documents to compare with, so the tokenizer's round trip of difficult texts decides.
                "lossless": used.lossless,
                "trained": False,
                "corpus": published.name,
                "bytes_from": "sidecar" if files[VAL_BYTES] else "table",
                "train": _survey(context, shards.TokenStream.open(files[TRAIN]), used, "train"),
                "val": _survey(context, val, used, "val"),
            }
            build.details |= published.details
            if files[VAL_BYTES]:
                val_bytes = _total(val, shards.TokenStream.open(files[VAL_BYTES]), used.bos_id)
            else:
                val_bytes = int(byte_counts.ByteTable.from_tokenizer(used).count_stream(val).sum())
            build.details["val"] |= {"bytes": val_bytes, "bytes_per_token": round(val_bytes / counts[VAL], 6)}
            context.reporter.message(
                f"{published.name}: {counts[TRAIN]:,} train tokens, {counts[VAL]:,} val tokens, "
                f"{val_bytes:,} val bytes by the {build.details['bytes_from']}"
            )
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
            progress.update(start + len(part), len(stream))
    if not documents:
        raise PgolfError(f"{stream.name} has no BOS (token {used.bos_id}): documents must start with one")
    return {"documents": documents, "tokens": len(stream)}


def _total(val: shards.TokenStream, counts: shards.TokenStream, bos_id: int) -> int:
    """Sum of a sidecar. Raises PgolfError when a BOS has bytes: it is shifted, or counts control tokens."""
    total = 0
    step = 1 << 22
    for start in range(0, len(val), step):
        part = counts[start : start + step]
        wrong = np.flatnonzero((val[start : start + step] == bos_id) & (part > 0))
        if len(wrong):
            raise PgolfError(
                f"{counts.name}: the BOS at token {start + int(wrong[0])} has {int(part[wrong[0]])} bytes, not 0; the "
                "counts are shifted against the tokens or include control tokens"
            )
        total += int(part.sum(dtype=np.int64))
    return total


def _link(path: Path, target: Path) -> None:
    try:
        os.link(path.resolve(), target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(path, target)
