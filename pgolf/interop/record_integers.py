"""Quantized files of the records: `{"w": tensors, "m": how each parameter is stored}`.

From record 2026-03-20 (10L_Int5MLP) on. A parameter is kept (`passthrough...`), or int5 to int8 in an int8 `.q` with a
`.scale` per row, chosen by search or by GPTQ. Later records add to it: `gate_int8_row` (PR #1736), a product of two
thin matrices that repairs the error (LQER, PR #1797: `+lqer`, or `+lqer_asym` with 2 and 4 bits), and groups of
columns on a finer scale (`+awqgrpint8`, PR #2014).
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pgolf.interop.per_row import per_row


def recognises(found: Any, metadata: Mapping[str, str]) -> bool:
    return isinstance(found, Mapping) and {"w", "m"} <= set(found)


def read(found: Mapping[str, Any], metadata: Mapping[str, str]) -> dict[str, Tensor]:
    """Raises ValueError, TypeError, KeyError, AttributeError or RuntimeError for a damaged file."""
    parts, weights = dict(found["w"]), {}
    for name, stored in found["m"].items():
        form, *extras = (stored["type"] if isinstance(stored, Mapping) else stored).split("+")
        if form.startswith("passthrough"):
            weights[name] = parts.pop(name)
        elif form == "gate_int8_row":
            weights[name] = per_row(parts.pop(f"{name}.gq"), parts.pop(f"{name}.gs"))
        elif re.fullmatch(r"(gptq \()?int[2-8]\)?", form):
            weights[name] = _matrix(name, parts, extras)
            extras = []
        else:
            raise ValueError(f"{name} is stored as {stored!r}, which is not known")
        if extras:
            raise ValueError(f"{name} is stored as {stored!r}, which is not known")
    if parts:
        raise ValueError(f"the storage format of {min(parts)} is not recorded")
    return weights


def _matrix(name: str, parts: dict[str, Tensor], extras: list[str]) -> Tensor:
    q = parts.pop(f"{name}.q")
    matrix = per_row(q, parts.pop(f"{name}.scale"))
    for extra in sorted(extras):  # the scales before the repair
        if re.fullmatch(r"awqgrpint[2-8]", extra):
            size = int(parts.pop(f"{name}.awqg_size"))
            fine = per_row(q, parts.pop(f"{name}.awqg_s_hi"))
            for start in parts.pop(f"{name}.awqg_start").tolist():
                matrix[:, start : start + size] = fine[:, start : start + size]
        elif extra in ("lqer", "lqer_asym"):
            end = "_a" if extra == "lqer_asym" else ""
            a, a_scale, b, b_scale = (parts.pop(f"{name}.{part}{end}") for part in ("lqA", "lqAs", "lqB", "lqBs"))
            if (a.shape[0], b.shape[1]) != matrix.shape:
                raise ValueError(f"the repair of {name} is {a.shape[0]} x {b.shape[1]}, not {tuple(matrix.shape)}")
            # Asymmetric: one scale for A, and one per group of the flattened B.
            groups = b.reshape(b_scale.numel(), -1) if end else b
            matrix = matrix + per_row(a, a_scale) @ per_row(groups, b_scale).reshape(b.shape)
        else:
            raise ValueError(f"{name} is stored with {extra!r}, which is not known")
    return matrix
