"""Range coding of a set of matrices with the model of `symbols`: the fast loops, and the cost in bits.

`constriction` does the arithmetic. Its `Categorical(perfect=False)` turns a row of integer frequencies into 24-bit
probabilities with one division, one multiplication and one truncation, all exact or correctly rounded, so that the same
frequencies give the same bytes on every machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import constriction
import numpy as np

from pgolf.codec.symbols import Plane, Scan
from pgolf.errors import PgolfError

_BATCH = 1 << 15  # symbols handed to the coder at once: their table rows take 32 MB at most
_FAMILY = constriction.stream.model.Categorical(perfect=False)
MAX_ALPHABET = 128


class Streams(NamedTuple):
    """The three parts that a set of matrices is coded as."""

    magnitudes: bytes
    """Range-coded, little-endian 32-bit words."""
    signs: bytes
    """Of all nonzero magnitudes, in the order of the walk: packed bits, or range-coded words in a centered set."""
    escapes: bytes
    """Escapes: excess of magnitudes over the alphabet's last symbol, in the order of the walk, as LEB128."""


class _Writer:
    """Collects symbols with the rows of the table they are coded with, until the table changes."""

    def __init__(self, ends: np.ndarray) -> None:
        self.encoder = constriction.stream.queue.RangeEncoder()
        self.bits = np.zeros(len(ends))  # by plane
        self._ends = ends
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, contexts: np.ndarray, symbols: np.ndarray, positions: np.ndarray) -> None:
        self._parts.append((contexts, symbols, positions))

    def flush(self, table: np.ndarray, by_plane: bool) -> None:
        if not self._parts:
            return
        contexts, symbols, positions = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        self._parts = []
        if by_plane:
            cost = (np.log2(table.sum(axis=1))[:, None] - np.log2(table))[contexts, symbols]
            plane = np.searchsorted(self._ends, positions, side="right")
            self.bits += np.bincount(plane, cost, minlength=len(self.bits))
        for start in range(0, len(contexts), _BATCH):
            part = slice(start, start + _BATCH)
            self.encoder.encode(symbols[part].astype(np.int32), _FAMILY, table.take(contexts[part], axis=0))

    def bytes(self) -> bytes:
        return self.encoder.get_compressed().astype("<u4").tobytes()


@dataclass(frozen=True)
class Coded:
    """The streams of `encode` and their ideal cost."""

    streams: Streams
    bits: float
    """Cross-entropy of the symbols by the model's own tables; escapes left out."""
    bits_by_plane: np.ndarray
    """(planes,) the same for each matrix; zeros unless asked for."""


def encode(
    planes: Sequence[Plane],
    symbols: Sequence[np.ndarray],
    alphabet: int,
    memory: int,
    centered: bool,
    by_plane: bool = False,
) -> Coded:
    """Code matrices of integers. The order of planes matters: the decoder needs the same.

    symbols: (rows, columns) of each plane, below 2^30 in size.
    """
    flat = np.concatenate([np.zeros(0, np.int32), *(matrix.ravel() for matrix in symbols)])
    ends = np.cumsum([plane.weights for plane in planes]).astype(np.int64)
    scan = Scan(planes, alphabet, memory, centered)
    magnitude_writer, sign_writer = _Writer(ends), _Writer(ends)
    plain_signs: list[np.ndarray] = [np.zeros(0, dtype=bool)]
    beyond: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]
    for positions in scan:
        here = flat[positions].astype(np.int64)
        distance = (here - scan.center) * scan.direction if centered else here
        whole = np.abs(distance)
        magnitudes = np.minimum(whole, alphabet - 1)
        magnitude_writer.add(scan.contexts, magnitudes, positions)
        some = magnitudes > 0
        if centered:
            sign_writer.add(scan.sign_contexts(magnitudes), (distance[some] < 0).astype(np.int64), positions[some])
        else:
            plain_signs.append(here[some] < 0)
        over = magnitudes == alphabet - 1
        if over.any():
            beyond.append(whole[over] - (alphabet - 1))
        table, sign_table = scan.table, scan.sign_table
        if scan.learn(magnitudes, here):
            magnitude_writer.flush(table, by_plane)
            sign_writer.flush(sign_table, by_plane)
    magnitude_writer.flush(scan.table, by_plane)
    sign_writer.flush(scan.sign_table, by_plane)
    scan.finish()
    plain = np.concatenate(plain_signs)
    signs = sign_writer.bytes() if centered else np.packbits(plain).tobytes()
    bits_by_plane = magnitude_writer.bits + sign_writer.bits
    if by_plane and not centered:
        bits_by_plane += [np.count_nonzero(matrix) for matrix in symbols]
    streams = Streams(magnitude_writer.bytes(), signs, write_numbers(np.concatenate(beyond)))
    return Coded(streams, scan.bits + len(plain), bits_by_plane)


def decode(planes: Sequence[Plane], streams: Streams, alphabet: int, memory: int, centered: bool) -> list[np.ndarray]:
    """Decode the matrices of integers, (rows, columns) int32 each. Raises PgolfError when the streams do not fit."""
    flat = np.zeros(sum(plane.weights for plane in planes), dtype=np.int32)
    scan = Scan(planes, alphabet, memory, centered)
    decoder = _decoder(streams.magnitudes)
    sign_decoder = _decoder(streams.signs) if centered else None
    plain = np.unpackbits(np.frombuffer(streams.signs, dtype=np.uint8)) if not centered else np.zeros(0, np.uint8)
    escapes = read_numbers(streams.escapes)
    if len(escapes) and escapes.max() > np.iinfo(np.int32).max // 2:
        raise PgolfError("corrupt model: a symbol exceeds 30 bits; package it again")
    # the coder reads zeros beyond its end without limit, so the cost of the symbols shows that it is far past the end
    capacity = 8.0 * (len(streams.magnitudes) + (len(streams.signs) if centered else 0)) * 1.01 + 4096
    sign_at = escape_at = 0
    try:
        for positions in scan:
            magnitudes = decoder.decode(_FAMILY, scan.table.take(scan.contexts, axis=0))
            some = np.flatnonzero(magnitudes)
            whole = magnitudes.astype(np.int64)
            over = np.flatnonzero(magnitudes == alphabet - 1)
            if len(over):
                whole[over] += escapes[escape_at : escape_at + len(over)]
                escape_at += len(over)
            if sign_decoder is None:
                signs = plain[sign_at : sign_at + len(some)]
                sign_at += len(some)
            else:
                signs = sign_decoder.decode(_FAMILY, scan.sign_table[scan.sign_contexts(magnitudes)])
            whole[some] = np.where(signs, -whole[some], whole[some])
            here = whole * scan.direction + scan.center if centered else whole
            flat[positions] = here
            if scan.learn(magnitudes, here) and scan.bits > capacity:
                break
        scan.finish()
    except (ValueError, AssertionError) as error:
        raise PgolfError("corrupt model: a symbol stream is too short; package it again") from error
    filled = decoder.maybe_exhausted() and (sign_decoder is None or sign_decoder.maybe_exhausted())
    if sign_decoder is None:
        filled = filled and -(-sign_at // 8) == len(streams.signs)
    if scan.bits > capacity or escape_at != len(escapes) or not filled:
        raise PgolfError("corrupt model: a symbol stream has data after its end; package it again")
    result, start = [], 0
    for plane in planes:
        result.append(flat[start : start + plane.weights].reshape(plane.rows, plane.columns))
        start += plane.weights
    return result


def _decoder(data: bytes) -> constriction.stream.queue.RangeDecoder:
    return constriction.stream.queue.RangeDecoder(np.frombuffer(data, dtype="<u4").astype(np.uint32))


def write_numbers(values: np.ndarray) -> bytes:
    """Non-negative integers as LEB128: seven bits a byte, lowest first, the high bit set on all but a number's last."""
    out = bytearray()
    for value in values.tolist():
        while value >= 128:
            out.append(value & 127 | 128)
            value >>= 7
        out.append(value)
    return bytes(out)


def read_numbers(data: bytes) -> np.ndarray:
    """The integers of `write_numbers` as int64. Raises PgolfError for a number of more than 9 bytes or a cut one."""
    values, value, shift = [], 0, 0
    for byte in data:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            values.append(value)
            value = shift = 0
        elif shift >= 63:
            raise PgolfError("corrupt model: a number exceeds 63 bits; package it again")
    if shift:
        raise PgolfError("corrupt model: a number is truncated; package it again")
    return np.array(values, dtype=np.int64)
