"""General compressors on a text, as a yardstick for a model's bits per byte.

A model has read the training text, so the compressors read it too where they can: xz and PPMd are primed with it, zstd
gets a dictionary of it. PPMd (Cleary and Witten 1984; variant H of 7-Zip) is the strongest of them on prose.
"""

import lzma
import zlib
from dataclasses import dataclass
from importlib.util import find_spec

import zstandard

PRIMING_BYTES = 8 << 20
"""xz looks back over 8 MiB at its default preset, so earlier training text could not help it."""
SLOW_BYTES = 16 << 20
"""Longest text for zstd -19 and PPMd: together they take about 15 s for it."""
_TRAINED_BYTES = 4 << 20  # end of the training text that zstd and PPMd read: about 3 s
_SAMPLE_BYTES = 4096
_DICTIONARY_BYTES = 112_640  # the zstd command's default
_PPMD_ORDER, _PPMD_MEMORY = 16, 256 << 20  # 4 MiB of text at order 16 stay within it, so the model never restarts


@dataclass(frozen=True)
class Reading:
    """One way to store the unseen text."""

    key: str
    what: str
    bits_per_byte: float
    bytes: int


def readings(train: bytes, val: bytes) -> list[Reading]:
    """Bits per byte of `val` (not empty) under each compressor, with the end of `train` known where it can be.

    A zstd dictionary is not part of the size: its own bytes are in the row's text. zstd and PPMd are left out for the
    reasons that `left_out` names.
    """
    train = train[-PRIMING_BYTES:]
    primed = len(lzma.compress(train + val)) - len(lzma.compress(train))
    sizes = [
        ("gzip", "gzip -9", len(zlib.compress(val, 9))),
        ("xz", "xz", len(lzma.compress(val))),
        *_zstd(train[-_TRAINED_BYTES:], val),
        ("xz_primed", "xz that has read the training text first", primed),
    ]
    if left_out(len(val)) is None:
        sizes.append(("ppmd", "PPMd that has read the training text first", _ppmd(train[-_TRAINED_BYTES:], val)))
    return [Reading(key, what, 8.0 * size / len(val), size) for key, what, size in sizes]


def left_out(text_bytes: int) -> str | None:
    """Why the strongest compressors are left out for a text of this length; None where they are not."""
    if text_bytes > SLOW_BYTES:
        return f"zstd and PPMd are left out: the text is longer than {SLOW_BYTES:,} bytes"
    if find_spec("pyppmd") is None:
        return "PPMd is left out: pip install 'pgolf[ppmd]' adds it"
    return None


def _zstd(train: bytes, val: bytes) -> list[tuple[str, str, int]]:
    if len(val) > SLOW_BYTES:
        return []
    samples: list[bytes | bytearray | memoryview[int]] = [
        train[at : at + _SAMPLE_BYTES] for at in range(0, len(train), _SAMPLE_BYTES)
    ]
    try:
        trained = zstandard.train_dictionary(_DICTIONARY_BYTES, samples)
    except zstandard.ZstdError:  # little training text, or text that never repeats: its end is the dictionary then
        trained = zstandard.ZstdCompressionDict(train[-_DICTIONARY_BYTES:], zstandard.DICT_TYPE_RAWCONTENT)
    size = len(zstandard.ZstdCompressor(level=19, dict_data=trained).compress(val))
    return [("zstd", f"zstd -19 with a {len(trained):,}-byte dictionary", size)]


def _ppmd(train: bytes, val: bytes) -> int:
    """Bytes of `val` after `train` in one PPMd stream."""
    import pyppmd

    encoder = pyppmd.Ppmd7Encoder(_PPMD_ORDER, _PPMD_MEMORY)
    encoder.encode(train)
    return len(encoder.encode(val)) + len(encoder.flush())
