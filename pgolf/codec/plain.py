"""Symbols and scales for a general compressor: what the entropy coder is compared with."""

import numpy as np

from pgolf.codec import general
from pgolf.codec.layout import Directory
from pgolf.quant.tensors import QuantizedModel, QuantizedTensor


def pack(model: QuantizedModel) -> bytes:
    """Symbols as 32-bit integers byte by byte, so that a general compressor sees the low bytes together; scales too."""
    out = []
    for tensor in model.matrices.values():
        for values, kind in ((tensor.symbols, "<i4"), (tensor.row_scale, "<i2"), (tensor.col_scale, "<i2")):
            raw = np.ascontiguousarray(values, dtype=kind).reshape(-1)
            out.append(raw.view(np.uint8).reshape(-1, raw.itemsize).T.tobytes())
    return b"".join(out)


def unpack(directory: Directory, packed: bytes) -> dict[str, QuantizedTensor]:
    size = 4 * directory.weights + 2 * sum(entry.rows + entry.columns for entry in directory.matrices)
    raw = np.frombuffer(general.decompress(packed, directory.coder, size), dtype=np.uint8)
    at = 0

    def take(count: int, kind: str) -> np.ndarray:
        nonlocal at
        width = np.dtype(kind).itemsize
        planes = raw[at : at + count * width].reshape(width, count)
        at += count * width
        return np.ascontiguousarray(planes.T).reshape(-1).view(kind)

    matrices = {}
    for entry in directory.matrices:
        symbols = take(entry.rows * entry.columns, "<i4").reshape(entry.rows, entry.columns).astype(np.int32)
        rows, columns = take(entry.rows, "<i2").astype(np.int16), take(entry.columns, "<i2").astype(np.int16)
        matrices[entry.name] = QuantizedTensor(
            entry.role, symbols, rows, columns, entry.resolution, entry.trellis, entry.segment
        )
    return matrices
