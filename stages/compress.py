"""Compress and decompress a file with the model of a run."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pgolf.compress import text_file, texts
from pgolf.compress.texts import Compressed, CompressSettings
from pgolf.errors import PgolfError
from pgolf.model.gpt import GPT
from pgolf.saved import tokens as token_stages
from pgolf.saved.models import load_model, training_length
from pgolf.store.stage_directory import Stage
from pgolf.tokens.tokenizer import Tokenizer
from stages.context import StageContext


@dataclass(frozen=True)
class Done:
    """A file that was written; `compressed` holds the figures of `compress`."""

    path: Path
    stage: Stage
    compressed: Compressed | None = None


def compress(context: StageContext, source: Stage, file: Path, output: Path | None, learns: bool = False) -> Done:
    """Write `file` compressed, as `<file>.pgt` unless `output` names another place; learns: with test-time training."""
    text = _read(file)
    target = _free(output or file.with_name(file.name + text_file.SUFFIX), file, context.force)
    model, tokenizer = _model_and_tokenizer(context, source)
    length = training_length(source)
    settings = CompressSettings(length, stride=min(CompressSettings.stride, length))
    ttt = context.config.ttt if learns else None
    found = texts.compress(text, model, tokenizer, settings, context.reporter, ttt)
    _write(target, found.data)
    return Done(target, source, found)


def decompress(context: StageContext, source: Stage, file: Path, output: Path | None) -> Done:
    """Write the text of a compressed file, without `.pgt` in its name unless `output` names another place."""
    data = _read(file)
    if output is None and file.suffix != text_file.SUFFIX:
        raise PgolfError(f"{file} does not end in {text_file.SUFFIX}; name the file to write with --output")
    target = _free(output or file.with_suffix(""), file, context.force)
    text_file.read(data, str(file))  # a damaged file is refused before the model is loaded
    model, tokenizer = _model_and_tokenizer(context, source)
    _write(target, texts.decompress(data, str(file), model, tokenizer, context.reporter))
    return Done(target, source)


def _model_and_tokenizer(context: StageContext, source: Stage) -> tuple[GPT, Tokenizer]:
    return load_model(source, context.runtime), token_stages.tokenizer_of(source.ancestor("tokenize"))


def _free(target: Path, source: Path, force: bool) -> Path:
    """The target, if a file can be written there; found out before hours of work."""
    remedy = "name another file with --output"
    if target.exists() and target.samefile(source):
        raise PgolfError(f"{target} is the input itself; {remedy}")
    if os.path.lexists(target) and (target.is_symlink() or not target.is_file()):
        raise PgolfError(f"{target} is not a plain file, so it is not replaced; {remedy}")
    if target.exists() and not force:
        raise PgolfError(f"{target} is there already; {remedy}, or replace it with --force")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise PgolfError(f"cannot write into {target.parent}: no such folder, or no permission; {remedy}")
    return target


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise PgolfError(f"cannot read {file}: {error.strerror or error}; name a file") from error


def _write(target: Path, data: bytes) -> None:
    """Whole or not at all."""
    beside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with beside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
    except BaseException as error:
        with suppress(OSError):
            beside.unlink()
        if not isinstance(error, OSError):
            raise
        reason = error.strerror or error
        raise PgolfError(f"cannot write {target}: {reason}; choose another place with --output") from error
