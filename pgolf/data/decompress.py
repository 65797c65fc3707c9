"""Compressed files as streams that are read to their proven end, in bounded memory.

`gzip.open`, `lzma.open`, `zstandard.open` and fsspec's `compression=` (which wraps those three) differ in what they let
pass: zstandard takes a frame without its end for a whole one, lzma drops a later stream that is damaged. Here the
decompressor objects of the same libraries are driven by one loop, which knows for each frame whether its end was seen
and verified. A file is one frame or more, back to back; anything else behind a frame is an error.

Memory stays bounded whatever the file claims: input is fed in pieces too small to unpack into much at once, and the
dictionary or window of a frame is limited. A file that unpacks to far more than text ever does is refused.

Documents are `.gz`, `.xz` or `.zst`; checkpoints of other programs also come as bare zlib and brotli streams.
"""

import io
import lzma
import zlib
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import IO, Any

import zstandard

from pgolf.errors import PgolfError

COMPRESSIONS = (".gz", ".xz", ".zst")
WINDOW_BYTES = 128 << 20  # zstd's own limit on a frame's window; xz -9 needs 65 MiB
# English packs to a third, logs to a hundredth; deflate cannot go beyond 1,032.
MAX_RATIO = 500
FREE_BYTES = 64 << 20  # the ratio of smaller files does not matter
# Unpacks to 64 MiB at most: a block of zstd that repeats one byte takes 4 bytes and expands to 128 KiB; xz reaches some
# 10,000 to 1.
_INPUT_BYTES = 2048


def compression_of(name: str) -> str:
    """`.gz`, `.xz`, `.zst`, or the empty string for a name with none of these suffixes."""
    suffix = PurePosixPath(name.replace("\\", "/")).suffix
    return suffix if suffix in COMPRESSIONS else ""


def decompressed(raw: IO[bytes], name: str) -> IO[bytes]:
    """The content of an open file, decompressed according to its name; closing it leaves `raw` open.

    Reading raises PgolfError, naming the file, where it is damaged, cut short, needs too much memory or unpacks to
    more than MAX_RATIO times its size.
    """
    suffix = compression_of(name)
    return io.BufferedReader(_Unpacked(raw, name, suffix), 1 << 20) if suffix else raw


def unpacked(data: bytes, suffix: str, name: str, max_ratio: int) -> bytes:
    """The content of compressed bytes; suffix: one of COMPRESSIONS, `.zlib` or `.br`.

    name: the file, for errors. max_ratio: PgolfError where more than this many times `data` comes out; otherwise as
    `decompressed`.
    """
    return _Unpacked(io.BytesIO(data), name, suffix, max_ratio).readall()


class _Unpacked(io.RawIOBase):
    """One compressed file as a stream of its content."""

    def __init__(self, raw: IO[bytes], name: str, suffix: str, max_ratio: int = MAX_RATIO) -> None:
        self._raw, self._name, self._suffix, self._max_ratio = raw, name, suffix, max_ratio
        self._decoder = _DECODERS[suffix]()
        self._begun = False  # whether the present frame has had any input
        self._frames = self._bytes_in = self._bytes_out = 0
        self._unused = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        while not self._ready:
            if not self._advance():
                return 0
        part = self._ready[: len(view)]
        view[: len(part)] = part
        self._ready = self._ready[len(part) :]
        return len(part)

    def _advance(self) -> bool:
        """Unpack a little more into `_ready`; False at the end of the file."""
        data, self._unused = self._unused, b""
        if not data:
            data = self._raw.read(_INPUT_BYTES)
            self._bytes_in += len(data)
            if not data:
                if self._begun or not self._frames:
                    raise self._error("it is cut short: its end is missing")
                return False
        if not self._begun and self._frames and self._suffix in (".gz", ".xz"):
            data = data.lstrip(b"\0")  # padding, which gzip and xz allow between and behind their frames
            if not data:
                return True
        self._begun = True
        try:
            self._ready = memoryview(self._decoder.decompress(data))
        except (zlib.error, lzma.LZMAError, EOFError, MemoryError, ValueError, zstandard.ZstdError) as error:
            raise self._error(f"it is damaged ({error})") from error
        self._bytes_out += len(self._ready)
        if self._bytes_out > max(FREE_BYTES, self._max_ratio * self._bytes_in):
            raise self._error(f"it unpacks to more than {self._max_ratio} times its size; unpack it yourself")
        if self._decoder.eof:
            self._unused = self._decoder.unused_data
            self._decoder, self._begun = _DECODERS[self._suffix](), False
            self._frames += 1
        return True

    def _error(self, what: str) -> PgolfError:
        return PgolfError(f"cannot read {self._name}: {what}")


class _Brotli:
    """brotli's decompressor with the interface of zlib's; bytes behind the end are an error."""

    unused_data = b""

    def __init__(self) -> None:
        import brotli  # only checkpoints need it

        self._reader, self._damage = brotli.Decompressor(), brotli.error

    @property
    def eof(self) -> bool:
        return bool(self._reader.is_finished())

    def decompress(self, data: bytes) -> bytes:
        try:
            parts = [self._reader.process(data, output_buffer_limit=FREE_BYTES)]
            # A few bytes of brotli can expand to any number of bytes.
            while not self.eof and not self._reader.can_accept_more_data() and sum(map(len, parts)) <= FREE_BYTES:
                parts.append(self._reader.process(b"", output_buffer_limit=FREE_BYTES))
        except self._damage as error:
            raise ValueError(str(error)) from error
        return b"".join(parts)


_DECODERS: dict[str, Callable[[], Any]] = {
    ".gz": lambda: zlib.decompressobj(wbits=31),  # header, checksum and length of gzip are checked
    ".zlib": zlib.decompressobj,
    ".xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=WINDOW_BYTES),
    ".zst": lambda: zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES).decompressobj(),
    ".br": _Brotli,
}
