"""Compress a text with a model, and get it back.

The text is cut into pieces of about `piece_bytes` at line ends. Without learning, `rows` pieces are coded side by side,
each with its own context. With learning they follow one another in one stream, whose model learns from each window
once that is coded.
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
from pgolf import config as configs
from pgolf.compress import range_coding, text_file
from pgolf.compress.predictors import Documents, LearningStream
from pgolf.compress.text_file import Block
from pgolf.config import EvaluateConfig, TttConfig
from pgolf.errors import PgolfError
from pgolf.model.gpt import GPT
from pgolf.progress import Progress, Reporter
from pgolf.tokens.tokenizer import Tokenizer

_MOST_TOKENS = 4
"""Tokens of a byte at most: case operators take none of the text, and one letter has two of them at most."""


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
        whole = all(type(value) is int for value in asdict(self).values())
        if not (whole and 1 <= self.stride <= self.seq_len and self.rows > 0 and self.piece_bytes > 0):
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
        end = text.find(b"\n", start + piece_bytes - 1, start + 2 * piece_bytes) + 1
        if end == 0:
            end = min(len(text), start + 2 * piece_bytes)
            while end < len(text) and text[end] & 0xC0 == 0x80 and end > start + piece_bytes:
                end -= 1  # never inside a character
        yield text[start:end]
        start = end


class _SideBySide:
    """Codes every block's pieces side by side, each alone."""

    def __init__(self, model: GPT, settings: CompressSettings) -> None:
        self._model, self._settings, self._bos = model, settings, model.config.bos_id

    def encode(self, ids: list[np.ndarray], on_step: range_coding.OnStep) -> bytes:
        predictor = Documents(self._model, len(ids), self._settings.seq_len, self._settings.stride)
        return range_coding.encode(predictor, ids, on_step)

    def decode(self, code: bytes, pieces: int, on_step: range_coding.OnStep) -> list[np.ndarray]:
        predictor = Documents(self._model, pieces, self._settings.seq_len, self._settings.stride)
        return range_coding.decode(predictor, code, self._bos, pieces, on_step)


class _Learning:
    """Codes piece after piece in one stream through all blocks, and learns on the way."""

    def __init__(self, model: GPT, settings: CompressSettings, ttt: TttConfig) -> None:
        windows = EvaluateConfig(seq_len=settings.seq_len, stride=settings.stride)
        self._bos = model.config.bos_id
        self._stream = LearningStream(model, windows, ttt, self._bos, None)

    def encode(self, ids: list[np.ndarray], on_step: range_coding.OnStep) -> bytes:
        return range_coding.encode_stream(self._stream, np.concatenate([one[1:] for one in ids]), on_step)

    def decode(self, code: bytes, pieces: int, on_step: range_coding.OnStep) -> list[np.ndarray]:
        left = pieces

        def ended(token: int) -> bool:
            nonlocal left
            left -= token == self._bos
            return left == 0

        tokens = range_coding.decode_stream(self._stream, code, on_step, ended) if pieces else np.zeros(0, np.uint16)
        parts = np.split(tokens, np.flatnonzero(tokens == self._bos) + 1)[:-1]
        return [np.append(np.uint16(self._bos), part) for part in parts]


def _coder(model: GPT, settings: CompressSettings, ttt: TttConfig | None) -> _SideBySide | _Learning:
    return _SideBySide(model, settings) if ttt is None else _Learning(model, settings, ttt)


def compress(
    text: bytes,
    model: GPT,
    tokenizer: Tokenizer,
    settings: CompressSettings,
    reporter: Reporter,
    ttt: TttConfig | None = None,
) -> Compressed:
    """The text as a file of `text_file`; ttt: how the model learns on the way, None: not at all.

    Raises PgolfError when the tokenizer does not give the text back exactly, or the method of learning cannot be
    followed token by token.
    """
    parts = list(pieces(text, settings.piece_bytes))
    blocks: list[Block] = []
    tokens = done = 0
    coder = _coder(model, settings, ttt)
    with one_thread(), reporter.progress("compress", total=len(text), unit="bytes") as bar:
        for at in range(0, len(parts), settings.rows):
            batch = parts[at : at + settings.rows]
            ids = [_checked(tokenizer, part) for part in batch]
            size, count = sum(map(len, batch)), sum(len(one) - 1 for one in ids)
            blocks.append(text_file.block_of(batch, coder.encode(ids, _Counter(bar, done, size, count))))
            tokens, done = tokens + count, done + size
    header = {
        "format": 1,
        "pgolf": pgolf.__version__,
        "model": model_hash(model),
        "tokenizer": hashlib.sha256(tokenizer.proto).hexdigest(),
        "settings": asdict(settings),
        "ttt": None if ttt is None else asdict(ttt),
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
    if header.get("kind") == "proof":
        raise PgolfError(f"{name} is a proof of a score, not a text; pgolf prove decodes it")
    settings, ttt = _settings(header, name)
    for what, found in (("model", model_hash(model)), ("tokenizer", hashlib.sha256(tokenizer.proto).hexdigest())):
        if header.get(what) != found:
            raise PgolfError(
                f"{name} was made with another {what} ({str(header.get(what))[:12]}…, this is {found[:12]}…); name the "
                "stage or package it was made with"
            )
    for number, block in enumerate(blocks, 1):
        if not 1 <= block.pieces <= settings.rows or block.text_bytes > 2 * settings.rows * settings.piece_bytes:
            raise PgolfError(f"{name}: block {number} declares more text than its settings allow: it is damaged")
    texts: list[bytes] = []
    done, total = 0, sum(block.text_bytes for block in blocks)
    coder = _coder(model, settings, ttt)
    with one_thread(), reporter.progress("decompress", total=total, unit="bytes") as bar:
        for number, block in enumerate(blocks, 1):
            text = _decoded(block, coder, tokenizer, _Counter(bar, done, block.text_bytes))
            if len(text) != block.text_bytes or zlib.crc32(text) != block.check:
                raise PgolfError(f"{name}: block {number} decodes to other text: {_other_machine(header, model)}")
            texts.append(text)
            done += len(text)
    text = b"".join(texts)
    if hashlib.sha256(text).hexdigest() != _field(header, "text", "sha256"):
        raise PgolfError(f"{name} is damaged: the SHA-256 of the text differs from the header's")
    return text


def _decoded(block: Block, coder: _SideBySide | _Learning, tokenizer: Tokenizer, count: "_Counter") -> bytes:
    """The text that the code of a block gives here; none where it gives tokens of no text."""
    try:
        ids = coder.decode(block.code, block.pieces, count.bounded(_MOST_TOKENS * block.text_bytes + block.pieces))
        return b"".join(tokenizer.decode(one[:-1]) for one in ids)
    # The coder asserts that a symbol has the code; a token beyond the tokenizer's, or a case operator in a wrong place.
    except (_TooLongError, AssertionError, IndexError, ValueError):
        return b""


def _other_machine(header: dict[str, Any], model: GPT) -> str:
    here, there = machine(next(model.parameters()).device), header.get("machine")
    there = there if isinstance(there, dict) else {}
    differs = [f"{key} {there.get(key)} there, {value} here" for key, value in here.items() if there.get(key) != value]
    return (
        f"this machine computes other bits than the one that compressed it ({'; '.join(differs)})"
        if differs
        else "this machine computes other bits, though nothing recorded of it differs, or the model has other settings"
    )


class _TooLongError(Exception):
    """A block decodes to more tokens than its text can have."""


class _Counter:
    """Counts coded tokens, and shows the bytes done: those before the block and a share of the block's."""

    def __init__(self, bar: Progress, done: int, size: int, tokens: int | None = None) -> None:
        """tokens: of the block; None: not known, a third of its bytes."""
        self._bar, self._done, self._size, self._limit = bar, done, size, math.inf
        self._tokens, self._coded = tokens or max(size // 3, 1), 0

    def bounded(self, limit: int) -> "_Counter":
        """Raise _TooLongError after more tokens than that."""
        self._limit = limit
        return self

    def __call__(self, tokens: int) -> None:
        self._coded += tokens
        if self._coded > self._limit:
            raise _TooLongError
        self._bar.update(self._done + min(1.0, self._coded / self._tokens) * self._size)


def _checked(tokenizer: Tokenizer, text: bytes) -> np.ndarray:
    """(n,) int64 tokens of a piece, BOS first and last."""
    ids = tokenizer.encode([text])[0]
    if tokenizer.decode(ids) != text:
        raise PgolfError(
            "the tokenizer does not give this text back exactly, so it cannot be compressed without loss; use a run "
            "whose tokenizer pgolf trained"
        )
    return np.append(ids.astype(np.int64), tokenizer.bos_id)


def _settings(header: dict[str, Any], name: str) -> tuple[CompressSettings, TttConfig | None]:
    try:
        settings = CompressSettings(**header["settings"])
        learns = header.get("ttt")
        ttt = None if learns is None else configs.from_dict({"ttt": learns}).ttt
    except (KeyError, TypeError, ValueError) as error:
        raise PgolfError(f"{name} has settings that this version does not know ({error})") from error
    if settings.seq_len * settings.rows > 1 << 20 or settings.piece_bytes > 1 << 24:
        raise PgolfError(f"{name} asks for more memory than any text needs: {settings}")
    return settings, ttt


def _field(header: dict[str, Any], *keys: str) -> Any:
    found: Any = header
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found
