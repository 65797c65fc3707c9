"""One block: attention and MLP around the residual stream, one after the other or side by side.

Side by side ("parallel residual", challenge PR #1412) both read the same input: a smaller loss when quantized, fewer
dependent steps. `norm_scale` damps deep layers by 1 / sqrt(layer + 1) (record 2026-03-21).
"""

import torch
from torch import Tensor, nn

from pgolf.config.model import ModelConfig
from pgolf.model.attention import Attention
from pgolf.model.attention_mask import View
from pgolf.model.canon import Canon
from pgolf.model.forward_context import Step
from pgolf.model.kernels import residual
from pgolf.model.layers import rms_norm
from pgolf.model.mlp import MLP
from pgolf.model.skips import Skip, join, join_mix


class Block(nn.Module):
    norm_factor: Tensor | None

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.attn_canon = Canon(config.canon_taps, config.dim) if config.canon_taps else None
        self.mlp_canon = Canon(config.canon_taps, config.dim) if config.canon_taps else None
        self.attn_scale = nn.Parameter(torch.ones(config.dim))
        self.mlp_scale = nn.Parameter(torch.ones(config.dim))
        self.resid_mix = (
            nn.Parameter(torch.stack([torch.ones(config.dim), torch.zeros(config.dim)])) if config.x0_mix else None
        )
        self.native = False  # whether the C kernel computes the residual sums, norms and convolutions of training
        self.parallel = 0 <= config.parallel_from <= layer
        # A tensor, not a number: one compiled block then serves every layer.
        factor = torch.tensor((layer + 1) ** -0.5) if config.norm_scale else None
        self.register_buffer("norm_factor", factor, persistent=False)

    def forward(
        self,
        x: Tensor,
        step: Step,
        view: View,
        values: Tensor | None = None,
        last: int = 0,
        skip: Skip | None = None,
    ) -> Tensor:
        """x (B, T, dim), the stream; the rest as in `Attention` -> the stream after this block, (B, last or T, dim)."""
        if self.native and self.training and self.resid_mix is not None and not self.parallel and not last:
            return self._trained(x, step, view, values, self.resid_mix, skip)
        x = self.mixed(x if skip is None else join(x, skip), step)
        h = self.normed(x)
        # The MLP's convolution looks back, so attention computes that many more positions.
        reach = 0 if self.mlp_canon is None or self.parallel or not last else len(self.mlp_canon.taps)
        wanted = last + reach if last + reach < x.shape[1] else 0
        attended = self.attended(h, step, view, values, wanted)
        x = x[:, -wanted:] + attended  # (B, wanted or T, dim)
        expanded = self.expanded(h if self.parallel else self.normed(x), step, last)
        return x[:, -last:] + expanded

    def _trained(
        self, x: Tensor, step: Step, view: View, values: Tensor | None, mix: Tensor, skip: Skip | None
    ) -> Tensor:
        """The same with sums, norms and convolutions in the C kernel."""
        stream = None if skip is None else skip.stream
        x, h = residual.enter(x, step.x0, stream, join_mix(mix, skip), *self._taps(self.attn_canon, step))
        attended = self.attn(h, step, view, values, 0, self.attn_scale)
        x, h = residual.enter(x, attended, None, None, *self._taps(self.mlp_canon, step))
        return self.mlp(h, self.mlp_scale, x)

    def _taps(self, canon: Canon | None, step: Step) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Taps of a convolution, where it ends, and the factor of the norm before it, for the kernel."""
        inside = None if canon is None else step.inside
        return None if canon is None or inside is None else canon.taps, inside, self.norm_factor

    def mixed(self, x: Tensor, step: Step) -> Tensor:
        """The stream with its learned share of the normed embedding."""
        if self.resid_mix is None:
            return x
        mix = self.resid_mix.to(x.dtype)
        return mix[0] * x + mix[1] * step.x0

    def normed(self, x: Tensor) -> Tensor:
        h = rms_norm(x)
        return h if self.norm_factor is None else h * self.norm_factor.to(h.dtype)

    def attended(self, h: Tensor, step: Step, view: View, values: Tensor | None = None, last: int = 0) -> Tensor:
        """The output of attention, to be added to the stream."""
        h = h if self.attn_canon is None or step.inside is None else self.attn_canon(h, step.inside)
        if self.training:
            return self.attn(h, step, view, values, last, self.attn_scale)
        return self.attn_scale.to(h.dtype) * self.attn(h, step, view, values, last)

    def expanded(self, h: Tensor, step: Step, last: int = 0) -> Tensor:
        """The output of the MLP at the last positions (0: all); h (B, L, dim) holds the last L of T positions."""
        if self.mlp_canon is not None and step.inside is not None:
            h = self.mlp_canon(h, step.inside[:, -h.shape[1] :])
        if self.training:
            return self.mlp(h[:, -last:], self.mlp_scale)
        return self.mlp_scale.to(h.dtype) * self.mlp(h[:, -last:])
