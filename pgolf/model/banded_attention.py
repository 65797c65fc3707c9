"""Attention within a window, for `model.layer_windows` and for scoring a text in one pass."""

import torch
import torch.nn.functional as F
from torch import Tensor


def attend_banded(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """As `pgolf.model.attention.attend`, every query seeing `window` keys at most, its own included.

    In blocks of `window` tokens, the queries of a block attend to the keys of the same and the previous block: twice
    the products that are needed, and no T x T matrix.
    """
    batch, length, heads, head_dim = q.shape
    count = -(-length // window)
    pad = (0, 0, 0, 0, 0, count * window - length)
    q, k, v = (F.pad(part, pad).unflatten(1, (count, window)) for part in (q, k, v))  # (B, n, W, heads, D)
    k, v = (torch.cat((part.roll(1, dims=1), part), dim=2) for part in (k, v))  # (B, n, 2W, heads, D)
    groups = heads // k.shape[3]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=3), v.repeat_interleave(groups, dim=3)
    query = torch.arange(window, device=q.device)[:, None]
    key = torch.arange(2 * window, device=q.device)
    seen = ((query < key) & (key <= query + window)).expand(count, 1, window, 2 * window)
    inside = torch.arange(count, device=q.device)[:, None] * window + key >= window  # the first block has none before
    seen = (seen & inside[:, None, None]).repeat(batch, 1, 1, 1)
    q, k, v = (part.flatten(0, 1).transpose(1, 2) for part in (q, k, v))  # (B n, heads, W or 2W, D)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2)
    return y.reshape(batch, count * window, heads, head_dim)[:, :length]
