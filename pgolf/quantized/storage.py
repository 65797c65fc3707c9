"""`quantized.safetensors`: a quantized model before entropy coding, as later stages read it.

Each matrix is three integer tensors (`NAME/symbols`, `NAME/row_scale`, `NAME/col_scale`), a control tensor is itself;
one JSON object in the metadata holds the order of everything, the roles, the grids and the model's own header.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pgolf.errors import PgolfError
from pgolf.quantized.tensors import QuantizedModel, QuantizedTensor

FORMAT = 1
_KEY = "pgolf.quantized"


def save(path: Path, model: QuantizedModel) -> None:
    """Write a quantized model. The header must be JSON-able. Raises PgolfError when the file cannot be written."""
    tensors: dict[str, torch.Tensor] = {}
    matrices = []
    for name, matrix in model.matrices.items():
        tensors[f"{name}/symbols"] = _own(_narrow(matrix.symbols))
        tensors[f"{name}/row_scale"] = _own(matrix.row_scale.astype(np.int16))
        tensors[f"{name}/col_scale"] = _own(matrix.col_scale.astype(np.int16))
        matrices.append(
            {
                "name": name,
                "role": matrix.role,
                "resolution": matrix.resolution,
                "trellis": matrix.trellis,
                "segment": matrix.segment,
            }
        )
    for name, control in model.controls.items():
        tensors[name] = control.detach().cpu().contiguous().clone()
    described: dict[str, Any] = {
        "format": FORMAT,
        "matrices": matrices,
        "controls": list(model.controls),
        "header": dict(model.header),
    }
    text = json.dumps(described, ensure_ascii=False, allow_nan=False)
    try:
        save_file(tensors, path, metadata={_KEY: text})
    except SafetensorError as error:  # its own class for a full disk
        raise PgolfError(f"cannot write {path}: {error}") from error


def load(path: Path) -> QuantizedModel:
    """Read a file of `save`. Raises PgolfError for any other or a damaged file."""
    try:
        with safe_open(path, framework="pt") as file:
            described = json.loads((file.metadata() or {})[_KEY])
            if described["format"] != FORMAT:
                raise PgolfError(
                    f"{path} has format {described['format']!r}, this pgolf reads {FORMAT}: use a newer one"
                )
            matrices = {
                entry["name"]: QuantizedTensor(
                    role=entry["role"],
                    symbols=file.get_tensor(f"{entry['name']}/symbols").numpy().astype(np.int32),
                    row_scale=file.get_tensor(f"{entry['name']}/row_scale").numpy(),
                    col_scale=file.get_tensor(f"{entry['name']}/col_scale").numpy(),
                    resolution=entry["resolution"],
                    trellis=entry["trellis"],
                    segment=entry["segment"],
                )
                for entry in described["matrices"]
            }
            controls = {name: file.get_tensor(name) for name in described["controls"]}
            return QuantizedModel(matrices=matrices, controls=controls, header=described["header"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise PgolfError(f"{path} is not a quantized model or is damaged ({error}); rerun quantize") from error


def _own(values: np.ndarray) -> torch.Tensor:
    """A tensor that shares memory with no other: matrices may share their scales, safetensors refuses that."""
    return torch.from_numpy(np.array(values, order="C", copy=True))


def _narrow(symbols: np.ndarray) -> np.ndarray:
    """The smallest integer type that holds the symbols: they lie on disk once more before they are coded."""
    for kind in (np.int8, np.int16):
        limits = np.iinfo(kind)
        if not symbols.size or (symbols.min() >= limits.min and symbols.max() <= limits.max):
            return symbols.astype(kind)
    return symbols.astype(np.int32)
