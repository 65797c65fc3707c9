"""Checkpoints of the challenge's scripts: float state dicts, and their quantized `.ptz` files.

A `.ptz` is a zlib-compressed `torch.save` of int8 tensors and scales (format `int8_clean_per_row_v1` of the challenge's
baseline, openai/parameter-golf `train_gpt.py`, which the seed shares): `q * scale`, the scale per row or one. Both are
read with `weights_only`, so that no code in the file is run.
"""

import dataclasses
import io
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pgolf.config import ModelConfig
from pgolf.errors import PgolfError

INT8_FORMAT = "int8_clean_per_row_v1"
_MAX_RATIO, _FREE_BYTES = 100, 64 << 20  # int8 weights pack to a third or so; zlib reaches 1,032 to 1 on zeros
_PREFIXES = ("_orig_mod.", "module.")  # of torch.compile and DistributedDataParallel
_NAMES = {"skip_weights": "skips.weights", "skip_gates": "skips.gates"}


def read_state_dict(path: Path) -> tuple[dict[str, Tensor], str]:
    """Float32 tensors by parameter name, and what kind of file they came from.

    Raises PgolfError for anything but a state dict, or one inside a checkpoint under `model` or `state_dict`.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PgolfError(f"cannot read the checkpoint {path}: {error.strerror or error}") from error
    kind = "torch"
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            return _floats(load(data), path), "safetensors"
        # A type of number that torch has and safetensors does not name, or the reverse, is a KeyError.
        except (SafetensorError, KeyError, ValueError, RuntimeError, TypeError) as error:
            raise PgolfError(f"{path} is no safetensors file of weights or is damaged ({error})") from error
    if data[:2] in (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda"):
        data, kind = _inflate(data, path), "zlib"
    if zipfile.is_zipfile(io.BytesIO(data)) and _unpacked_bytes(data) > len(data):
        raise PgolfError(f"{path} holds compressed records, which torch does not write; save it with torch.save")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old pickles, on lines of their own
            found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what its unpickler raises, a class per kind of damage
        raise PgolfError(
            f"{path} is no checkpoint of tensors alone, or is damaged: torch.save or safetensors write a state dict"
        ) from error
    if isinstance(found, dict) and found.get("__quant_format__") == INT8_FORMAT:
        return _floats(_dequantize(found, path), path), INT8_FORMAT
    if isinstance(found, dict) and "__quant_format__" in found:
        raise PgolfError(f"{path} has the quantized format {found['__quant_format__']!r}; only {INT8_FORMAT} is known")
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
            break
    return _floats(found, path), kind


def model_config(weights: Mapping[str, Tensor], base: ModelConfig) -> ModelConfig:
    """`base` with every size that the shapes of a state dict with the challenge's names tell.

    Raises PgolfError when a name is missing that they all have.
    """
    try:
        vocab_size, dim = weights["tok_emb.weight"].shape
        num_heads = weights["blocks.0.attn.q_gain"].numel()
        kv_rows = weights["blocks.0.attn.c_k.weight"].shape[0]
        hidden = weights["blocks.0.mlp.fc.weight"].shape[0]
    except KeyError as error:
        raise PgolfError(
            f"the checkpoint has no tensor {error}: it matches neither the challenge's baseline nor the seed"
        ) from error
    except (ValueError, IndexError) as error:
        raise PgolfError("the checkpoint's matrices have not two dimensions each") from error
    if not vocab_size * dim * num_heads * kv_rows * hidden:
        raise PgolfError("the checkpoint holds empty tensors")
    layers = {int(found[1]) for name in weights if (found := re.match(r"blocks\.(\d{1,6})\.", name))}
    if layers != set(range(len(layers))):
        raise PgolfError(f"the checkpoint has tensors of {len(layers)} layers, the last called blocks.{max(layers)}")
    return dataclasses.replace(
        base,
        vocab_size=vocab_size,
        dim=dim,
        num_layers=max(layers) + 1,
        num_heads=num_heads,
        num_kv_heads=max(1, kv_rows * num_heads // dim),
        mlp_ratio=hidden / dim,
        tied_head="lm_head.weight" not in weights,
        x0_mix="blocks.0.resid_mix" in weights,
        skips="skips.weights" in weights,
        skip_gates="skips.gates" in weights or "skips.weights" not in weights,
    )


def _floats(found: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(found, Mapping) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise PgolfError(f"{path} is not a state dict (expected a mapping of names to tensors)")
    weights: dict[str, Tensor] = {}
    for name, tensor in found.items():
        plain = str(name)
        while prefix := next((prefix for prefix in _PREFIXES if plain.startswith(prefix)), None):
            plain = plain.removeprefix(prefix)
        plain = _NAMES.get(plain) or plain
        if plain in weights:
            raise PgolfError(f"{path} holds {plain} twice, under two prefixes")
        try:
            if tensor.is_floating_point():
                weights[plain] = tensor.detach().float().contiguous()
        except (RuntimeError, NotImplementedError) as error:  # sparse, nested, quantized, on no device
            raise PgolfError(f"{path}: {plain} is no ordinary tensor ({str(error).splitlines()[0]})") from error
    return weights


def _dequantize(found: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    try:
        weights = {}
        for name, q in found["quantized"].items():
            scale = found["scales"][name].float()
            weights[name] = q.float() * scale.reshape(scale.shape + (1,) * (q.ndim - scale.ndim))
        return weights | dict(found["passthrough"])
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise PgolfError(f"{path} is a damaged {INT8_FORMAT} file ({error!r})") from error


def _unpacked_bytes(data: bytes) -> int:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error):
        return 0  # torch's own reader says what is wrong


def _inflate(data: bytes, path: Path) -> bytes:
    decompressor = zlib.decompressobj()
    limit = max(_FREE_BYTES, _MAX_RATIO * len(data))
    try:
        inflated = decompressor.decompress(data, limit)
    except zlib.error as error:
        raise PgolfError(f"{path} is damaged: {error}") from error
    if not decompressor.eof:
        raise PgolfError(f"{path} is cut off, or unpacks to more than {limit:,} bytes")
    return inflated
