"""Quantized files of Psionic (PR #119, Rust): the baseline's integers as safetensors, `NAME.__q` and `NAME.__scale`."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pgolf.interop.per_row import per_row

_KEY = "psionic.parameter_golf.quant_format"
_FORMAT = "int8_clean_per_row_v1"


def recognises(found: Any, metadata: Mapping[str, str]) -> bool:
    return _KEY in metadata


def read(found: Mapping[str, Any], metadata: Mapping[str, str]) -> dict[str, Tensor]:
    """Raises ValueError or KeyError for a damaged file."""
    if metadata[_KEY] != _FORMAT:
        raise ValueError(f"its format is {metadata[_KEY]!r}; known: {_FORMAT}")
    weights = {}
    for name, tensor in found.items():
        plain = name.removesuffix(".__q")
        if plain != name:
            weights[plain] = per_row(tensor, found[f"{plain}.__scale"])
        elif not (name.endswith(".__scale") and f"{name.removesuffix('.__scale')}.__q" in found):
            weights[name] = tensor
    return weights
