"""General compressors behind one interface: for the header and control tensors, and to compare the coder with.

Decompression is given the expected size and never produces more, whatever the data declares.
"""

import lzma
import zlib

from pgolf.codec.dictionary import DICTIONARY
from pgolf.errors import PgolfError

NAMES = ("raw", "zlib", "brotli", "lzma", "primed")
_LZMA = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}


def compress(data: bytes, name: str) -> bytes:
    """With the strongest setting of `name`, one of NAMES."""
    if name == "zlib":
        return zlib.compress(data, 9)
    if name == "primed":
        writer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zdict=DICTIONARY)
        return writer.compress(data) + writer.flush()
    if name == "brotli":
        import brotli

        return bytes(brotli.compress(data, quality=11, lgwin=24))
    if name == "lzma":
        return lzma.compress(data, lzma.FORMAT_RAW, filters=[_LZMA])
    return data


def decompress(data: bytes, name: str, size: int) -> bytes:
    """Exactly `size` bytes, or PgolfError."""
    try:
        result = _decompress(data, name, size)
    except (zlib.error, lzma.LZMAError, EOFError, ValueError) as error:
        raise PgolfError(f"corrupt model: {name} cannot decompress its section ({error}); package it again") from error
    if len(result) != size:
        raise PgolfError(f"corrupt model: the {name} section is not {size} bytes long as declared; package it again")
    return result


def _decompress(data: bytes, name: str, size: int) -> bytes:
    if name == "zlib":
        return zlib.decompressobj().decompress(data, size + 1)
    if name == "primed":
        return zlib.decompressobj(-15, zdict=DICTIONARY).decompress(data, size + 1)
    if name == "brotli":
        import brotli

        reader = brotli.Decompressor()
        try:
            found = bytes(reader.process(data, output_buffer_limit=size + 1))
            while len(found) <= size and not reader.is_finished() and not reader.can_accept_more_data():
                found += reader.process(b"", output_buffer_limit=size + 1 - len(found))
        except brotli.error as error:
            raise ValueError(str(error)) from error
        return found
    if name == "lzma":
        return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[_LZMA]).decompress(data, size + 1)
    return data


def smallest(data: bytes, names: tuple[str, ...] = ("raw", "zlib", "brotli", "primed")) -> tuple[int, bytes]:
    """The index in NAMES of the best compressor, and its output."""
    made = [(NAMES.index(name), compress(data, name)) for name in names]
    return min(made, key=lambda item: (len(item[1]), item[0]))
