"""Containers of checkpoint files, one row each, and the objects inside.

Packings nest: a record of 2026-04 is brotli over a byte shuffle over `torch.save`. Every size is checked before
memory is taken for it, and no code in a file is run (`weights_only`).
"""

import io
import json
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgolf.data import decompress
from pgolf.errors import PgolfError

MAX_RATIO = 100  # quantized weights pack to a third or so, weights at their initialization to a hundredth
_DEPTH = 4
_ZIP = b"PK\x03\x04"  # how `torch.save` begins
_PICKLE = b"\x80"  # and did before torch 1.6
_SHUFFLED = b"BSHF"
_GROUPED = b"PGRP"


@dataclass(frozen=True)
class Packing:
    name: str
    recognises: Callable[[bytes], bool]
    open: Callable[[bytes, Path], bytes]


def _decompressed(suffix: str, skip: int, data: bytes, path: Path) -> bytes:
    return decompress.unpacked(data[skip:], suffix, str(path), MAX_RATIO)


def _begins(magic: bytes) -> Callable[[bytes], bool]:
    return lambda data: data.startswith(magic)


def _is_zlib(data: bytes) -> bool:
    return data[:1] == b"\x78" and int.from_bytes(data[:2], "big") % 31 == 0  # RFC 1950


def _is_safetensors(data: bytes) -> bool:
    return len(data) > 8 and data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data) - 8


def _unshuffled(data: bytes, path: Path) -> bytes:
    """Undo a byte shuffle: bytes sorted by their position modulo a stride, back in order.

    The stride takes one byte in records from 2026-04-01 (PR #1218) on and two in that of 2026-03-31.
    """
    for width in (1, 2):
        stride = int.from_bytes(data[4 : 4 + width], "little")
        mixed = np.frombuffer(data, np.uint8, offset=min(len(data), 4 + width))
        if not stride:
            continue
        plain = np.empty_like(mixed)
        start = 0
        for position in range(stride):
            count = len(plain[position::stride])
            plain[position::stride] = mixed[start : start + count]
            start += count
        if plain[:4].tobytes() == _ZIP:
            return plain.tobytes()
    raise PgolfError(f"{path} is damaged: no torch file is behind its byte shuffle")


def _grouped(data: bytes, path: Path) -> bytes:
    raise PgolfError(
        f"{path} holds weights packed by the program lrzip (record 1.0611, ZPAQ), which pgolf cannot read: save the "
        "model again with that script's COMPRESSOR=brotli"
    )


def _unknown(data: bytes, path: Path) -> bytes:
    """Brotli streams have no magic number: a file of no other format is tried as one."""
    try:
        return _decompressed(".br", 0, data, path)
    except PgolfError as error:
        reason = str(error).removeprefix(f"cannot read {path}: ")
        raise PgolfError(
            f"{path} is not a checkpoint that holds only tensors, or it is damaged: "
            "it begins like no torch or safetensors file and "
            f"is packed with none of zlib, gzip, xz, zstd and brotli (as brotli, {reason})"
        ) from error


PACKINGS = (
    Packing("zlib", _is_zlib, partial(_decompressed, ".zlib", 0)),
    Packing("zlib", _begins(b"ZLIB"), partial(_decompressed, ".zlib", 4)),  # record 2026-03-21 DepthRecurrence
    Packing("zstd", _begins(b"\x28\xb5\x2f\xfd"), partial(_decompressed, ".zst", 0)),
    Packing("zstd", _begins(b"ZSTD"), partial(_decompressed, ".zst", 4)),  # record 2026-03-21 DepthRecurrence
    Packing("xz", _begins(b"\xfd7zXZ\0"), partial(_decompressed, ".xz", 0)),
    Packing("gzip", _begins(b"\x1f\x8b"), partial(_decompressed, ".gz", 0)),
    Packing("byte shuffle", _begins(_SHUFFLED), _unshuffled),
    Packing("lrzip per group", _begins(_GROUPED), _grouped),
    Packing("brotli", lambda data: not data.startswith((_ZIP, _PICKLE)) and not _is_safetensors(data), _unknown),
)


def unpack(path: Path) -> tuple[Any, dict[str, str], list[str]]:
    """The object in a file, its metadata, and the names of its packings, the outermost first.

    Every tensor in it is an ordinary one on the CPU, with a storage of its full size. Raises PgolfError.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PgolfError(f"cannot read the checkpoint {path}: {error.strerror or error}") from error
    names: list[str] = []
    while not (path.suffix == ".safetensors" and not names):
        packing = next((row for row in PACKINGS if row.recognises(data)), None)
        if packing is None:
            break
        if len(names) == _DEPTH:
            raise PgolfError(f"{path} is packed more than {_DEPTH} times over, as no known checkpoint is")
        data = packing.open(data, path)
        names.append(packing.name)
    metadata: dict[str, str] = {}
    if _is_safetensors(data) or path.suffix == ".safetensors":
        found, metadata = _safetensors(data, path)
        names.append("safetensors")
    else:
        found = _torch_object(data, path)
        names.append("torch")
    _check_sizes(found, len(data), path)
    return found, metadata, names


def _safetensors(data: bytes, path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    # A type of number that torch has and safetensors does not name, or the reverse, is a KeyError.
    except (SafetensorError, KeyError, ValueError, RuntimeError, TypeError) as error:
        raise PgolfError(f"{path} is not a safetensors file of weights, or it is damaged ({error})") from error
    return tensors, header.get("__metadata__", {})


def _torch_object(data: bytes, path: Path) -> Any:
    if zipfile.is_zipfile(io.BytesIO(data)) and _unpacked_bytes(data) > len(data):
        raise PgolfError(f"{path} holds compressed records, which torch does not write; save it with torch.save")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about old pickles
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what its unpickler raises, a class per kind of damage
        # torch's own text begins with advice to turn the check off.
        other = re.search(r"GLOBAL ([\w.]+) was not an allowed|Unsupported (?:global|class):? (\S+)", str(error))
        reason = f"it names {other[1] or other[2]}" if other else "its archive or its index of tensors cannot be read"
        raise PgolfError(f"{path} is not a checkpoint that holds only tensors, or it is damaged: {reason}") from error


def _unpacked_bytes(data: bytes) -> int:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error):
        # zipfile raises NotImplementedError for archives of a later version of the format.
        return 0  # torch.load then reports the fault


def _check_sizes(found: Any, file_bytes: int, path: Path) -> None:
    """Refuse tensors that would take far more memory than the file: views that repeat a few numbers, or one storage
    under many names."""
    total = 0
    for name, tensor in _tensors(found):
        try:
            dense = tensor.device.type == "cpu" and tensor.layout == torch.strided and not tensor.is_quantized
            stored = tensor.untyped_storage().nbytes() if dense else 0
        except RuntimeError:  # torch's NotImplementedError is one: tensors that have no storage, such as sparse ones
            dense = False
        if not dense:
            raise PgolfError(f"{path}: {name} is not a dense tensor ({tensor.layout}, {tensor.device.type})")
        if tensor.numel() * tensor.element_size() > stored:
            raise PgolfError(f"{path}: {name} is {tuple(tensor.shape)}, more than the {stored:,} bytes stored for it")
        total += 4 * tensor.numel()
    if total > max(decompress.FREE_BYTES, 8 * file_bytes):
        raise PgolfError(f"{path} gives {total:,} bytes of weights out of {file_bytes:,}: it repeats its tensors")


def _tensors(found: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    if isinstance(found, Tensor):
        yield name, found
    elif depth < 8 and isinstance(found, Mapping | list | tuple):
        for key, value in found.items() if isinstance(found, Mapping) else enumerate(found):
            yield from _tensors(value, str(key), depth + 1)
