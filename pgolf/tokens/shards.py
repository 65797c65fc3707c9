"""Token files in the challenge's own format, read and written exactly.

A shard is 256 little-endian int32 header words (20240520, 1, token count, zeros), then that many little-endian
uint16 tokens; its size is exactly 1024 + 2 * count. The challenge's published data works as is, and a truncated
download is refused instead of being read short (its own download script keeps one without a check).
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from pgolf.errors import PgolfError

MAGIC = 20240520
VERSION = 1
HEADER_WORDS = 256
HEADER_BYTES = 4 * HEADER_WORDS
TOKEN_LIMIT = 65_536  # tokens are uint16


def shard_tokens(path: Path) -> int:
    """Tokens in a shard, after checking its header and size. Raises PgolfError naming what was expected and found."""
    try:
        with path.open("rb") as file:
            raw = file.read(HEADER_BYTES)
        size = path.stat().st_size
    except OSError as error:
        raise PgolfError(f"cannot read the shard {path}: {error.strerror or error}") from error
    if len(raw) < HEADER_BYTES:
        raise PgolfError(f"{path} is not a shard: expected a header of {HEADER_BYTES} bytes, found {len(raw)} bytes")
    magic, version, count = (int(word) for word in np.frombuffer(raw, "<i4")[:3])
    if (magic, version) != (MAGIC, VERSION) or count < 0:
        raise PgolfError(
            f"{path} is not a shard: expected a header of {MAGIC}, {VERSION}, token count; "
            f"found {magic}, {version}, {count}"
        )
    expected = HEADER_BYTES + 2 * count
    if size != expected:
        raise PgolfError(
            f"{path} is damaged: its header declares {count} tokens, so expected {expected} bytes, found {size} bytes; "
            "fetch or write it again"
        )
    return count


class ShardWriter:
    """Writes `<prefix>_000000.bin`, `<prefix>_000001.bin`, ... in a folder, each of `shard_tokens` but the last.

    A context manager; leaving it completes the last header. At least one shard is written, even without tokens.
    """

    def __init__(self, folder: Path, prefix: str, shard_tokens: int) -> None:
        if shard_tokens < 1:
            raise PgolfError(f"tokenizer.shard_tokens is {shard_tokens}; a shard holds at least one token")
        self._folder, self._prefix, self._limit = folder, prefix, shard_tokens
        self.paths: list[Path] = []
        self.tokens = 0
        self._count = 0
        folder.mkdir(parents=True, exist_ok=True)
        self._open()

    def write(self, tokens: np.ndarray) -> None:
        """Append tokens, uint16 of any length; documents may straddle shards, as in the challenge's data."""
        assert tokens.dtype == np.uint16, tokens.dtype
        self.tokens += len(tokens)
        while len(tokens):
            if self._count == self._limit:
                self._finish()
                self._open()
            part = tokens[: self._limit - self._count]
            self._file.write(part.astype("<u2", copy=False).tobytes())
            self._count += len(part)
            tokens = tokens[len(part) :]

    def close(self) -> None:
        if not self._file.closed:
            self._finish()

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _open(self) -> None:
        path = self._folder / f"{self._prefix}_{len(self.paths):06d}.bin"
        self._file = path.open("wb")
        self._file.write(bytes(HEADER_BYTES))
        self.paths.append(path)
        self._count = 0

    def _finish(self) -> None:
        header = np.zeros(HEADER_WORDS, "<i4")
        header[:3] = MAGIC, VERSION, self._count
        self._file.seek(0)
        self._file.write(header.tobytes())
        self._file.close()


def write_shards(folder: Path, prefix: str, tokens: Iterable[np.ndarray], shard_tokens: int) -> list[Path]:
    """Write arrays of uint16 tokens, one after the other, as shards; returns their paths."""
    with ShardWriter(folder, prefix, shard_tokens) as writer:
        for part in tokens:
            writer.write(part)
    return writer.paths


class TokenStream:
    """Shards as one sequence of tokens, memory-mapped: nothing is read before it is asked for."""

    def __init__(self, parts: Sequence[np.ndarray], name: str) -> None:
        self._parts = [part for part in parts if len(part)]
        self._ends = np.cumsum([len(part) for part in self._parts], dtype=np.int64)
        self.name = name

    @classmethod
    def open(cls, paths: Sequence[Path]) -> "TokenStream":
        """Map shards, in the order given, after checking each. Raises PgolfError for none, or a bad one."""
        if not paths:
            raise PgolfError("no shards to open")
        parts = []
        for path in paths:
            count = shard_tokens(path)
            if count:  # an empty map is an error to numpy
                parts.append(np.memmap(path, "<u2", mode="r", offset=HEADER_BYTES, shape=(count,)))
        return cls(parts, str(paths[0]) + (f" and {len(paths) - 1} more" if len(paths) > 1 else ""))

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, span: slice) -> np.ndarray:
        """Tokens `span.start` to `span.stop` as one contiguous uint16 array, whatever shards they lie in."""
        start, stop, step = span.indices(len(self))
        if step != 1:
            raise IndexError("a stream is sliced in steps of one")
        found = []
        index = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            part = self._parts[index]
            offset = start - (int(self._ends[index]) - len(part))
            piece = part[offset : offset + stop - start]
            found.append(piece)
            start += len(piece)
            index += 1
        if len(found) == 1:
            return np.asarray(found[0])
        return np.concatenate(found) if found else np.zeros(0, np.uint16)

    def view(self, start: int, stop: int) -> "TokenStream":
        """The same tokens from `start` to `stop`, still memory-mapped."""
        parts, begin = [], 0
        for part in self._parts:
            parts.append(part[max(0, start - begin) : max(0, stop - begin)])
            begin += len(part)
        return TokenStream(parts, self.name)

    def rows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Rows of `length` tokens beginning at `starts` (n,); returns uint16 (n, length)."""
        out = np.empty((len(starts), length), np.uint16)
        for row, start in enumerate(starts):
            out[row] = self[int(start) : int(start) + length]
        return out

    def find_after(self, token: int, start: int) -> int | None:
        """Index of the first `token` at or after `start`; None when there is none."""
        for begin in range(start, len(self), 1 << 20):
            hits = np.flatnonzero(self[begin : begin + (1 << 20)] == token)
            if len(hits):
                return begin + int(hits[0])
        return None
