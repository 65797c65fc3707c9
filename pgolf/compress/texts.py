"""Compress a text with a model, and get it back.

The text is cut into pieces of about `piece_bytes` at line ends. Without learning, `rows` pieces are coded side by side,
each with its own context.
"""

import hashlib
import math
import platform
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

import pgolf
from pgolf.compress import range_coding, text_file
from pgolf.compress.predictors import Documents
from pgolf.compress.text_file import Block
from pgolf.errors import PgolfError
from pgolf.model.gpt import GPT
from pgolf.progress import Reporter
from pgolf.tokens.tokenizer import Tokenizer


@dataclass(frozen=True)
class CompressSettings:
    seq_len: int
    """Tokens of context at most."""
    stride: int = 64
    """Tokens that the context moves by when it is full; see `evaluate.stride`."""
    rows: int = 32
    """Pieces coded side by side: more is faster on many cores and takes more memory."""
    piece_bytes: int = 4096
    """Bytes of a piece at least, up to the next line end: each begins without context, so longer is smaller."""

    def __post_init__(self) -> None:
        if not (1 <= self.stride <= self.seq_len and self.rows > 0 and self.piece_bytes > 0):
            raise PgolfError(f"the settings of the compressed file make no sense: {self}")


@dataclass(frozen=True)
class Compressed:
    data: bytes
    text_bytes: int
    tokens: int
    code_bytes: int
    """Of the range coder alone; the rest of `data` is header, block heads and digest."""

    @property
    def bits_per_byte(self) -> float:
        return 8 * len(self.data) / self.text_bytes if self.text_bytes else math.nan


def model_hash(model: GPT) -> str:
    """SHA-256 over the names, shapes and float32 values of a model's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def machine(device: torch.device) -> dict[str, Any]:
    """Properties that the bits of a forward pass may depend on."""
    return {
        "torch": torch.__version__.partition("+")[0],
        "processor": platform.machine(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "device": device.type,
    }


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for products of a few rows, where sharing them out costs more than it saves and may change bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pieces(text: bytes, piece_bytes: int) -> Iterator[bytes]:
    """The text in pieces of at least `piece_bytes` that end at line ends; their concatenation is the text.

    A line of more than twice that length is cut between UTF-8 characters.
    """
    start = 0
    while start < len(text):
        end = text.find(b"\n", start + piece_bytes - 1) + 1
        if end == 0 or end - start > 2 * piece_bytes:
            end = min(len(text), start + 2 * piece_bytes)
            while end < len(text) and text[end] & 0xC0 == 0x80 and end > start + piece_bytes:
                end -= 1  # never inside a character
        yield text[start:end]
        start = end


def compress(
    text: bytes, model: GPT, tokenizer: Tokenizer, settings: CompressSettings, reporter: Reporter
) -> Compressed:
    """The text as a file of `text_file`.

    Raises PgolfError when the tokenizer does not give the text back exactly.
    """
    parts = list(pieces(text, settings.piece_bytes))
    blocks: list[Block] = []
    tokens = 0
    with one_thread(), reporter.progress("compress", total=len(text)) as bar:
        for at in range(0, len(parts), settings.rows):
            batch = parts[at : at + settings.rows]
            ids = [_checked(tokenizer, part) for part in batch]
            done = sum(block.text_bytes for block in blocks)
            size, count = sum(map(len, batch)), sum(len(one) - 1 for one in ids)
            progress = _Counter(lambda share, done=done, size=size: bar.update(done + share * size), count)
            predictor = Documents(model, len(batch), settings.seq_len, settings.stride)
            code = range_coding.encode(predictor, ids, progress)
            blocks.append(text_file.block_of(batch, code))
            tokens += count
    header = {
        "format": 1,
        "pgolf": pgolf.__version__,
        "model": model_hash(model),
        "tokenizer": hashlib.sha256(tokenizer.proto).hexdigest(),
        "settings": asdict(settings),
        "text": {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()},
        "machine": machine(next(model.parameters()).device),
    }
    return Compressed(text_file.write(header, blocks), len(text), tokens, sum(len(block.code) for block in blocks))


def decompress(data: bytes, name: str, model: GPT, tokenizer: Tokenizer, reporter: Reporter) -> bytes:
    """The text of a compressed file; name: of the file, for messages.

    Raises PgolfError when the file was changed, was made with another model or tokenizer, or when this machine computes
    other bits than the one that compressed it.
    """
    header, blocks = text_file.read(data, name)
    settings = _settings(header, name)
    for what, found in (("model", model_hash(model)), ("tokenizer", hashlib.sha256(tokenizer.proto).hexdigest())):
        if header.get(what) != found:
            raise PgolfError(
                f"{name} was made with another {what} ({str(header.get(what))[:12]}…, this is {found[:12]}…); name the "
                "stage or package it was made with"
            )
    texts: list[bytes] = []
    total = sum(block.text_bytes for block in blocks)
    with one_thread(), reporter.progress("decompress", total=total) as bar:
        for number, block in enumerate(blocks, 1):
            if block.pieces > settings.rows or block.text_bytes > 2 * settings.rows * settings.piece_bytes:
                raise PgolfError(f"{name}: block {number} declares more text than its settings allow: it is damaged")
            done = sum(map(len, texts))
            estimate = max(1, block.text_bytes // 3)  # tokens: only the bar depends on it
            progress = _Counter(
                lambda share, done=done, size=block.text_bytes: bar.update(done + share * size), estimate
            )
            texts.append(_decoded(block, number, header, model, tokenizer, settings, progress, name))
    text = b"".join(texts)
    if hashlib.sha256(text).hexdigest() != _field(header, "text", "sha256"):
        raise PgolfError(f"{name} is damaged: the SHA-256 of the text differs from the header's")
    return text


def _decoded(
    block: Block, number: int, header: dict[str, Any], model: GPT, tokenizer: Tokenizer, settings: CompressSettings,
    progress: "_Counter", name: str,
) -> bytes:  # fmt: skip
    predictor = Documents(model, block.pieces, settings.seq_len, settings.stride)
    limit = block.text_bytes + block.pieces  # a token carries a byte at least, but for the one that ends a piece
    text = b""
    try:
        ids = range_coding.decode(predictor, block.code, tokenizer.bos_id, block.pieces, progress.bounded(limit))
        text = b"".join(tokenizer.decode(one[:-1]) for one in ids)
    except _TooLongError:
        pass
    if len(text) != block.text_bytes or zlib.crc32(text) != block.check:
        here, there = machine(next(model.parameters()).device), header.get("machine")
        there = there if isinstance(there, dict) else {}
        differs = [
            f"{key} {there.get(key)} there, {value} here" for key, value in here.items() if there.get(key) != value
        ]
        raise PgolfError(
            f"{name}: block {number} decodes to other text: this machine computes other bits than the one that "
            f"compressed it ({'; '.join(differs) or 'nothing recorded differs'})"
        )
    return text


class _TooLongError(Exception):
    """A block decodes to more tokens than its text can have."""


class _Counter:
    """Counts coded tokens and shows the share of `total`."""

    def __init__(self, show: Any, total: int) -> None:
        self._show, self._total, self._done, self._limit = show, max(total, 1), 0, math.inf

    def bounded(self, limit: int) -> "_Counter":
        self._limit = limit
        return self

    def __call__(self, tokens: int) -> None:
        self._done += tokens
        if self._done > self._limit:
            raise _TooLongError
        self._show(min(1.0, self._done / self._total))


def _checked(tokenizer: Tokenizer, text: bytes) -> np.ndarray:
    """(n,) int64 tokens of a piece, BOS first and last."""
    ids = tokenizer.encode([text])[0]
    if tokenizer.decode(ids) != text:
        raise PgolfError(
            "the tokenizer does not give this text back exactly, so it cannot be compressed without loss; use a run "
            "whose tokenizer pgolf trained"
        )
    return np.append(ids.astype(np.int64), tokenizer.bos_id)


def _settings(header: dict[str, Any], name: str) -> CompressSettings:
    try:
        settings = CompressSettings(**header["settings"])
    except (KeyError, TypeError) as error:
        raise PgolfError(f"{name} has settings that this version does not know ({error})") from error
    if max(settings.seq_len, settings.rows) > 1 << 16 or settings.piece_bytes > 1 << 24:
        raise PgolfError(f"{name} asks for more memory than any text needs: {settings}")
    return settings


def _field(header: dict[str, Any], *keys: str) -> Any:
    found: Any = header
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found
