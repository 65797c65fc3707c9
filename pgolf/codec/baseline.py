"""Baseline coders: symbols and scales packed for a general compressor, to compare the entropy coder with."""

import numpy as np

from pgolf.codec import compressors
from pgolf.codec.directory import Directory
from pgolf.quantized.tensors import QuantizedModel, QuantizedTensor

WIDTHS = ("<i1", "<i2", "<i4")
"""Integer types of the symbols, by a matrix's `part` in the directory."""


def width_of(symbols: np.ndarray) -> int:
    """Index in WIDTHS of the smallest type that holds the symbols."""
    least, most = (int(symbols.min()), int(symbols.max())) if symbols.size else (0, 0)
    fits = [np.iinfo(kind).min <= least and most <= np.iinfo(kind).max for kind in WIDTHS]
    return fits.index(True)


def pack(model: QuantizedModel, directory: Directory) -> bytes:
    """Of each matrix the symbols, row scales and column scales; integers of several bytes all first bytes first."""
    out = []
    for entry, tensor in zip(directory.matrices, model.matrices.values(), strict=True):
        for values, kind in (
            (tensor.symbols, WIDTHS[entry.part]),
            (tensor.row_scale, "<i2"),
            (tensor.col_scale, "<i2"),
        ):
            raw = np.ascontiguousarray(values, dtype=kind).reshape(-1)
            out.append(raw.view(np.uint8).reshape(-1, raw.itemsize).T.tobytes())
    return b"".join(out)


def unpack(directory: Directory, packed: bytes) -> dict[str, QuantizedTensor]:
    """The matrices that `pack` packed. Raises PgolfError when the data is not of the declared size."""
    entries = directory.matrices
    symbol_bytes = sum(entry.rows * entry.columns << entry.part for entry in entries)
    size = symbol_bytes + 2 * sum(entry.rows + entry.columns for entry in entries)
    raw = np.frombuffer(compressors.decompress(packed, directory.coder, size), dtype=np.uint8)
    at = 0

    def take(count: int, kind: str) -> np.ndarray:
        nonlocal at
        width = np.dtype(kind).itemsize
        planes = raw[at : at + count * width].reshape(width, count)
        at += count * width
        return np.ascontiguousarray(planes.T).reshape(-1).view(kind)

    matrices = {}
    for entry in entries:
        symbols = take(entry.rows * entry.columns, WIDTHS[entry.part]).reshape(entry.rows, entry.columns)
        rows, columns = take(entry.rows, "<i2").astype(np.int16), take(entry.columns, "<i2").astype(np.int16)
        matrices[entry.name] = QuantizedTensor(
            entry.role, symbols.astype(np.int32), rows, columns, entry.resolution, entry.trellis, entry.segment
        )
    return matrices
