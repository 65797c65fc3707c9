"""Quantized files of the challenge's baseline: integers, scales and the rest in three mappings.

`int8_clean_per_row_v1` is the baseline's (openai/parameter-golf `train_gpt.py`), which twelve records of 2026-03 keep,
some with fewer than 8 bits in the same int8. `mixed_int8_int6_v1` is record 2026-03-21 DepthRecurrence;
`int6_sdclip_v1` is the seed's, clipped at multiples of a row's standard deviation. No public program writes this name;
public ones with the same clipping keep the baseline's layout, and so it is read, as an assumption that is named.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pgolf.interop.per_row import per_row

NAMES = ("int8_clean_per_row_v1", "mixed_int8_int6_v1", "int6_sdclip_v1")


ASSUMED = {"int6_sdclip_v1": "int6_sdclip_v1 has the baseline's layout: int8 times a scale per row, or one number"}


def assumption(found: Mapping[str, Any]) -> str:
    """What had to be assumed of the file's format; empty for a documented one."""
    return ASSUMED.get(str(found.get("__quant_format__")), "")


def recognises(found: Any, metadata: Mapping[str, str]) -> bool:
    return isinstance(found, Mapping) and ("__quant_format__" in found or {"quantized", "scales"} <= set(found))


def read(found: Mapping[str, Any], metadata: Mapping[str, str]) -> dict[str, Tensor]:
    """Raises ValueError, TypeError, KeyError or AttributeError for a damaged file."""
    form = found.get("__quant_format__", NAMES[0])
    if form not in NAMES:
        raise ValueError(f"its format is {form!r}; known: {', '.join(NAMES)}")
    scales, weights = found["scales"], dict(found["passthrough"])
    for name, q in found["quantized"].items():
        if name in weights:
            raise ValueError(f"{name} is there twice")
        weights[name] = per_row(q, scales[name])
    return weights
