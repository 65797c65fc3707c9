"""Exclusive self-attention (arXiv 2603.09078): remove the component of each head's output along the own value.

From each head's output the component along its own token's value is removed, `y - (y . v') v'` with v' = v / |v|. No
parameters. Challenge: about -0.002 BPB on the last three layers (PR #265), all layers since PR #478. Grouping the
query heads of a value by reshaping instead of repeating the value makes it cheap.
"""

import torch.nn.functional as F
from torch import Tensor


def exclude_self(y: Tensor, v: Tensor) -> Tensor:
    """y (B, T, H, D) attention output, v (B, T, H_kv, D) -> (B, T, H, D)."""
    grouped = y.unflatten(2, (v.shape[2], -1))  # (B, T, H_kv, H / H_kv, D)
    unit = F.normalize(v, dim=-1)[:, :, :, None]
    return (grouped - (grouped * unit).sum(-1, keepdim=True) * unit).flatten(2, 3)
