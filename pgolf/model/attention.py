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

    def forward(self, h: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """h (B, T, dim), cos and sin (T, rotating dims / 2) -> (B, T, dim)."""
        batch, length, _ = h.shape
        q = self.c_q(h).view(batch, length, self.num_heads, self.head_dim)
        k = self.c_k(h).view(batch, length, self.num_kv_heads, self.head_dim)
        v = self.c_v(h).view(batch, length, self.num_kv_heads, self.head_dim)
        q = rotate(rms_norm(q), cos, sin) * self.q_gain.to(q.dtype)[:, None]
        k = rotate(rms_norm(k), cos, sin)
        y = attend(q, k, v)
        return self.proj(y.reshape(batch, length, -1))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention; q (B, T, H, D), k and v (B, T, H_kv, D) -> (B, T, H, D)."""
    groups = q.shape[2] // k.shape[2]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=2), v.repeat_interleave(groups, dim=2)
    y = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True)
    return y.transpose(1, 2)
