"""Control tensors (gains, scales, gates) in the container: stored exactly, their bytes sorted so that they compress."""

from collections.abc import Sequence

import numpy as np
import torch

from pgolf.codec import compressors
from pgolf.codec import directory as directories
from pgolf.codec.directory import Directory
from pgolf.errors import PgolfError

TYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}
TYPE_NAMES = {dtype: name for name, dtype in TYPES.items()}


def to_bytes(control: torch.Tensor) -> bytes:
    """The values of a tensor, little-endian, in row-major order."""
    flat = control.detach().cpu().contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).numpy()) if flat.numel() else b""


def _sizes(directory: Directory) -> list[int]:
    """Bytes of each control tensor."""
    return [
        directories.CONTROL_BYTES[kind] * int(np.prod(shape, dtype=np.int64)) for _, kind, shape in directory.controls
    ]


def split(controls: Sequence[bytes], directory: Directory) -> bytes:
    """The controls' values byte by byte: of all tensors of one type the first bytes, then the second, ..."""
    out = []
    for wanted, width in directories.CONTROL_BYTES.items():
        joined = b"".join(raw for raw, (_, kind, _) in zip(controls, directory.controls, strict=True) if kind == wanted)
        out.append(np.frombuffer(joined, dtype=np.uint8).reshape(-1, width).T.tobytes())
    return b"".join(out)


def read(directory: Directory, kind: int, stored: bytes) -> dict[str, torch.Tensor]:
    """The control tensors by name. Raises PgolfError when they do not match the directory."""
    sizes = _sizes(directory)
    if kind >= len(compressors.NAMES):
        raise PgolfError("the control tensors are packed in an unknown way: the container is damaged")
    raw = compressors.decompress(stored, compressors.NAMES[kind], sum(sizes))
    controls: dict[str, torch.Tensor] = {}
    start = 0
    for wanted, width in directories.CONTROL_BYTES.items():
        chosen = [(c, n) for c, n in zip(directory.controls, sizes, strict=True) if c[1] == wanted]
        total = sum(size for _, size in chosen)
        joined = np.frombuffer(raw, np.uint8, total, start).reshape(width, -1).T.tobytes()
        start += total
        at = 0
        for (name, _, shape), size in chosen:
            values = torch.frombuffer(bytearray(joined[at : at + size]), dtype=torch.uint8) if size else None
            empty = torch.zeros(shape, dtype=TYPES[wanted])
            controls[name] = empty if values is None else values.view(TYPES[wanted]).reshape(shape)
            at += size
    return {name: controls[name] for name, _, _ in directory.controls}
