"""Integers times a scale per row, the common element of the challenge's quantized formats."""

import torch
from torch import Tensor


def per_row(q: Tensor, scale: Tensor) -> Tensor:
    """float32 `q * scale`; q (rows, ...) int8, scale (rows,) or one number.

    Raises ValueError for anything else. The records round the product to the type that the script's model had, bfloat16
    for the embedding; here it stays float32.
    """
    if q.dtype != torch.int8 or not scale.is_floating_point():
        raise ValueError(f"integers of {q.dtype} with scales of {scale.dtype}; expected int8 and a floating type")
    if scale.numel() != 1 and scale.shape != q.shape[:1]:
        raise ValueError(f"scales {tuple(scale.shape)} for integers {tuple(q.shape)}; expected one, or one per row")
    return q.float() * scale.float().reshape(-1, *(1,) * (q.ndim - 1)) if q.ndim else q.float() * scale.float()
