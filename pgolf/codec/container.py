"""The container `model.pgz`: a quantized model as few bytes as possible."""

import hashlib
import json
import zlib

import numpy as np
import torch

from pgolf.errors import PgolfError
from pgolf.quant.tensors import QuantizedModel, QuantizedTensor

_DTYPES = {"f2": torch.float16, "bf": torch.bfloat16, "f4": torch.float32}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def encode(model: QuantizedModel, coder: str = "range") -> bytes:
    """The container's bytes; `decode` gives back exactly the same model."""
    parts: list[bytes] = []
    matrices, controls = [], []
    for name, m in model.matrices.items():
        matrices.append([name, m.role, *m.shape, m.resolution, m.trellis, m.segment])
        parts += [m.symbols.astype("<i4").tobytes(), m.row_scale.astype("<i2").tobytes()]
        parts.append(m.col_scale.astype("<i2").tobytes())
    for name, c in model.controls.items():
        controls.append([name, _NAMES[c.dtype], list(c.shape)])
        parts.append(c.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    head = json.dumps([matrices, controls, dict(model.header)]).encode()
    payload = zlib.compress(len(head).to_bytes(4, "little") + head + b"".join(parts), 9)
    return b"PGZ0" + hashlib.sha256(payload).digest() + payload


def decode(data: bytes) -> QuantizedModel:
    """The quantized model in a container. Raises PgolfError for anything else."""
    payload = data[36:]
    if data[:4] != b"PGZ0" or hashlib.sha256(payload).digest() != data[4:36]:
        raise PgolfError("this is not a model.pgz, or it is damaged; package the model again")
    raw = zlib.decompress(payload)
    size = int.from_bytes(raw[:4], "little")
    described, position = json.loads(raw[4 : 4 + size]), 4 + size

    def take(kind: str, count: int) -> np.ndarray:
        nonlocal position
        found = np.frombuffer(raw, kind, count, position)
        position += found.nbytes
        return found.copy()

    matrices, controls = {}, {}
    for name, role, rows, columns, resolution, trellis, segment in described[0]:
        symbols = take("<i4", rows * columns).reshape(rows, columns)
        matrices[name] = QuantizedTensor(
            role, symbols, take("<i2", rows), take("<i2", columns), resolution, trellis, segment
        )
    for name, kind, shape in described[1]:
        dtype = _DTYPES[kind]
        count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        controls[name] = torch.from_numpy(take("u1", count)).view(dtype).reshape(shape)
    return QuantizedModel(matrices, controls, described[2])
