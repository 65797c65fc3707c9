"""Causal self-attention with grouped key and value heads, normed queries and keys, and a learned gain per head."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf.config.model import ModelConfig
from pgolf.model.layers import Linear, rms_norm
from pgolf.model.rotary import rotate


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.head_dim = config.dim // config.num_heads
        kv_dim = self.num_kv_heads * self.head_dim
        self.c_q = Linear(config.dim, config.dim)
        self.c_k = Linear(config.dim, kv_dim)
        self.c_v = Linear(config.dim, kv_dim)
        self.proj = Linear(config.dim, config.dim)
        self.q_gain = nn.Parameter(torch.full((self.num_heads,), config.qk_gain))
        self.window = 0  # tokens each query sees, itself included; 0: everything before it

    def forward(self, h: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """h (B, T, dim), cos and sin (T, rotating dims / 2) -> (B, T, dim)."""
        batch, length, _ = h.shape
        q = self.c_q(h).view(batch, length, self.num_heads, self.head_dim)
        k = self.c_k(h).view(batch, length, self.num_kv_heads, self.head_dim)
        v = self.c_v(h).view(batch, length, self.num_kv_heads, self.head_dim)
        q = rotate(rms_norm(q), cos, sin) * self.q_gain.to(q.dtype)[:, None]
        k = rotate(rms_norm(k), cos, sin)
        y = attend_banded(q, k, v, self.window) if 0 < self.window < length else attend(q, k, v)
        return self.proj(y.reshape(batch, length, -1))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention; q (B, T, H, D), k and v (B, T, H_kv, D) -> (B, T, H, D)."""
    groups = q.shape[2] // k.shape[2]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=2), v.repeat_interleave(groups, dim=2)
    y = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True)
    return y.transpose(1, 2)


def attend_banded(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """As `attend`, every query seeing `window` keys at most, its own included.

    Cut in blocks of `window` tokens, a block's queries meet the keys of their own and the block before: twice the
    products that are needed, and no T x T matrix.
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
    mask = ((query < key) & (key <= query + window)).expand(count, 1, window, 2 * window)
    inside = torch.arange(count, device=q.device)[:, None] * window + key >= window  # the first block has none before
    mask = (mask & inside[:, None, None]).repeat(batch, 1, 1, 1)
    q, k, v = (part.flatten(0, 1).transpose(1, 2) for part in (q, k, v))  # (B n, heads, W or 2W, D)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
    return y.reshape(batch, count * window, heads, head_dim)[:, :length]
