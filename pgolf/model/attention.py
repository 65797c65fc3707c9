"""Causal self-attention with grouped key and value heads, normed queries and keys, and a learned gain per head."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf.config.model import ModelConfig
from pgolf.model.attention_mask import View, mask
from pgolf.model.banded_attention import attend_banded
from pgolf.model.forward_context import Step
from pgolf.model.head_gate import HeadGate
from pgolf.model.kernels import attention, bfloat16, bfloat16_attention, heads
from pgolf.model.layers import Linear, previous, rms_norm
from pgolf.model.rotary import rotate
from pgolf.model.xsa import exclude_self


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
        self.value_x0 = nn.Parameter(torch.zeros(config.dim)) if config.value_x0 else None
        self.gate = (
            HeadGate(config.head_gate, config.dim, config.num_heads, config.head_gate_factor)
            if config.head_gate != "none"
            else None
        )
        self.exclusive = 0 <= config.xsa_from <= layer
        self.offset_from = config.rope_dims if config.key_offset else 0
        self.native = False  # whether the C kernel computes the attention itself
        self.fused = False  # whether in training it computes what happens to the heads before and after, too
        self.tiled = False  # or whether in training another kernel takes its factors in bfloat16

    def forward(
        self, h: Tensor, step: Step, view: View, values: Tensor | None, last: int = 0, scale: Tensor | None = None
    ) -> Tensor:
        """h (B, T, dim) normed; view: the keys seen; values (B, T, kv_dim) to add -> (B, T, dim).

        last: compute the output of the last `last` positions only, (B, last, dim); 0: all. scale: (dim,) of the output.
        """
        if (
            self.fused and torch.is_grad_enabled() and h.dtype == torch.float32 and not last and values is None
            and self.value_x0 is None and not self.offset_from and step.cache is None
        ):  # fmt: skip
            return heads.whole(self, h, step, view, scale)
        batch, length, _ = h.shape
        asking = h[:, -last:] if last else h  # (B, L, dim)
        cos, sin = (step.cos[-last:], step.sin[-last:]) if last else (step.cos, step.sin)
        tiles = self.proj.products == "tiles" and torch.is_grad_enabled()
        if tiles and not last and self.value_x0 is None:  # h is read once
            weights = self.c_q.weight, self.c_k.weight, self.c_v.weight
            q, k, v = bfloat16.linear(h, torch.cat(weights)).split([len(weight) for weight in weights], -1)
        else:
            q, k = self.c_q(asking), self.c_k(h)
            v = self.c_v(h if self.value_x0 is None else h + self.value_x0.to(h.dtype) * step.x0)
        q = q.view(batch, last or length, self.num_heads, self.head_dim)
        k = k.view(batch, length, self.num_kv_heads, self.head_dim)
        v = (v if values is None else v + values).view(batch, length, self.num_kv_heads, self.head_dim)
        q = rotate(rms_norm(q), cos, sin) * self.q_gain.to(q.dtype)[:, None]
        k = rotate(rms_norm(k), step.cos, step.sin)
        if self.offset_from and step.inside is not None:
            k = offset_keys(k, self.offset_from, step.inside)
        if step.cache is not None:
            k, v = step.cache.extend(k, v, step.total)
        y = (
            bfloat16_attention.attention(q, k, v, view.first)[0]
            if self.tiled and torch.is_grad_enabled()
            else attend(q, k, v, view, self.native)
        )
        if self.exclusive:
            y = exclude_self(y, v[:, -y.shape[1] :])
        if self.gate is not None:
            y = self.gate(y, asking)
        return self.proj(y.reshape(batch, last or length, -1), scale)


def offset_keys(k: Tensor, start: int, inside: Tensor) -> Tensor:
    """Shift key dimensions from `start` on by one token, so that one layer can find the token after a match.

    NanoGPT speedrun (partial key offset). k (B, T, H_kv, D), inside (B, T, 1) zero where a document starts.
    """
    return torch.cat((k[..., :start], previous(k[..., start:]) * inside[..., None]), dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor, view: View, native: bool = False) -> Tensor:
    """Causal attention; q (B, L, H, D), k and v (B, T, H_kv, D) -> (B, L, H, D). `native`: in the C kernel.

    The queries are those of the last L of the T positions.
    """
    if native and q.dtype == torch.float32:
        return attention.attention(q, k, v, view.first)[0]
    queries, length = q.shape[1], k.shape[1]
    if view.window:
        padded = F.pad(q, (0, 0, 0, 0, length - queries, 0))  # (B, T, H, D)
        return attend_banded(padded, k, v, view.window)[:, length - queries :]
    grouped = q.shape[2] != k.shape[2]
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    seen = None if view.first is None else mask(view.first)[:, :, length - queries :]
    if seen is None and queries < length:
        seen = torch.ones(queries, length, dtype=torch.bool, device=q.device).tril(length - queries)
    if grouped and seen is not None:  # on a GPU masks with grouped heads fall back to holding all T x T scores
        k, v = (part.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for part in (k, v))
        grouped = False
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=seen is None, enable_gqa=grouped)
    return y.transpose(1, 2)
