"""A plain training step of the record script's shape, written the way the published scripts are.

One concern per line, one tensor per operation, matrix by matrix: norms and squashing as torch functions, grouped
attention through scaled_dot_product_attention, the whole batch's logits in memory, Muon per matrix, AdamW for the
rest, one EMA. It is the yardstick of `speed.py`, written from descriptions of the 1.0810 record, and shares no code
with pgolf.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE, SOFTCAP, QK_GAIN, ROPE_BASE = 0.5, 30.0, 5.25, 10_000.0


class RMSNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.size(-1),))


class CastedLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class Rotary(nn.Module):
    def __init__(self, dims: int) -> None:
        super().__init__()
        self.register_buffer("inv_freq", 1.0 / ROPE_BASE ** (torch.arange(0, dims, 2).float() / dims), persistent=False)
        self.cache: tuple[Tensor, Tensor] | None = None

    def forward(self, length: int) -> tuple[Tensor, Tensor]:
        if self.cache is None or self.cache[0].size(1) != length:
            angles = torch.outer(torch.arange(length).float(), self.inv_freq)
            self.cache = angles.cos()[None, :, None, :], angles.sin()[None, :, None, :]
        return self.cache


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor, dims: int) -> Tensor:
    turning, fixed = x[..., :dims], x[..., dims:]
    half = dims // 2
    x1, x2 = turning[..., :half], turning[..., half:]
    turned = torch.cat((x1 * cos + x2 * sin, x1 * (-sin) + x2 * cos), dim=-1)
    return torch.cat((turned, fixed), dim=-1)


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, kv_heads: int, rope_dims: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim, self.rope_dims = heads, kv_heads, dim // heads, rope_dims
        self.c_q = CastedLinear(dim, dim, bias=False)
        self.c_k = CastedLinear(dim, kv_heads * self.head_dim, bias=False)
        self.c_v = CastedLinear(dim, kv_heads * self.head_dim, bias=False)
        self.proj = CastedLinear(dim, dim, bias=False)
        self.q_gain = nn.Parameter(torch.full((heads,), QK_GAIN))
        self.rotary = Rotary(rope_dims)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, dim = x.shape
        q = self.c_q(x).reshape(batch, length, self.heads, self.head_dim)
        k = self.c_k(x).reshape(batch, length, self.kv_heads, self.head_dim)
        v = self.c_v(x).reshape(batch, length, self.kv_heads, self.head_dim)
        q = F.rms_norm(q, (q.size(-1),))
        k = F.rms_norm(k, (k.size(-1),))
        cos, sin = self.rotary(length)
        q = apply_rotary(q, cos, sin, self.rope_dims)
        k = apply_rotary(k, cos, sin, self.rope_dims)
        q = q * self.q_gain.to(dtype=q.dtype)[None, None, :, None]
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            is_causal=True,
            enable_gqa=self.kv_heads != self.heads,
        ).transpose(1, 2)
        y = self.exclude_self(y, v)
        return self.proj(y.reshape(batch, length, dim))

    def exclude_self(self, y: Tensor, v: Tensor) -> Tensor:
        batch, length, heads, head_dim = y.shape
        grouped = y.reshape(batch, length, self.kv_heads, heads // self.kv_heads, head_dim)
        unit = F.normalize(v, dim=-1).unsqueeze(-2)
        along = (grouped * unit).sum(dim=-1, keepdim=True) * unit
        return (grouped - along).reshape(batch, length, heads, head_dim)


class MLP(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc = CastedLinear(dim, hidden, bias=False)
        self.proj = CastedLinear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(F.leaky_relu(self.fc(x), negative_slope=SLOPE).square())


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, kv_heads: int, hidden: int, rope_dims: int, layer: int) -> None:
        super().__init__()
        self.attn_norm, self.mlp_norm = RMSNorm(), RMSNorm()
        self.attn, self.mlp = Attention(dim, heads, kv_heads, rope_dims), MLP(dim, hidden)
        self.attn_scale, self.mlp_scale = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.ones(dim))
        self.resid_mix = nn.Parameter(torch.stack((torch.ones(dim), torch.zeros(dim))))
        self.ln_scale = (layer + 1) ** -0.5

    def forward(self, x: Tensor, x0: Tensor) -> Tensor:
        mix = self.resid_mix.to(dtype=x.dtype)
        x_in = mix[0][None, None, :] * x + mix[1][None, None, :] * x0
        out = self.attn(self.attn_norm(x_in) * self.ln_scale)
        x_out = x_in + self.attn_scale.to(dtype=x.dtype)[None, None, :] * out
        down = self.mlp(self.mlp_norm(x_out) * self.ln_scale)
        return x_out + self.mlp_scale.to(dtype=x.dtype)[None, None, :] * down


class ReferenceGPT(nn.Module):
    """4 blocks, blocks 1 and 2 run three times when `looping`, gated skips between the halves."""

    def __init__(
        self, vocab_size: int, dim: int, layers: int, heads: int, kv_heads: int, hidden: int, rope_dims: int
    ) -> None:
        super().__init__()
        self.tok_emb = nn.Embedding(vocab_size, dim)
        self.blocks = nn.ModuleList(Block(dim, heads, kv_heads, hidden, rope_dims, i) for i in range(layers))
        self.skip_weights = nn.Parameter(torch.ones(4, dim))
        self.skip_gates = nn.Parameter(torch.zeros(4, dim))
        self.final_norm = RMSNorm()
        self.looping = False
        nn.init.normal_(self.tok_emb.weight, std=0.005)
        for block in self.blocks:
            for linear in (block.attn.c_q, block.attn.c_k, block.attn.c_v, block.mlp.fc):
                nn.init.orthogonal_(linear.weight)
            nn.init.zeros_(block.attn.proj.weight)
            nn.init.zeros_(block.mlp.proj.weight)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        order = [0, 1, 2, 1, 2, 1, 2, 3] if self.looping else [0, 1, 2, 3]
        x = F.rms_norm(self.tok_emb(tokens), (self.tok_emb.embedding_dim,))
        x0 = x
        skips = []
        half = len(order) // 2
        for layer in order[:half]:
            x = self.blocks[layer](x, x0)
            skips.append(x)
        for j, layer in enumerate(order[half:]):
            scaled = self.skip_weights[j].to(dtype=x.dtype)[None, None, :] * skips.pop()
            gate = torch.sigmoid(self.skip_gates[j].to(dtype=x.dtype))[None, None, :]
            x = torch.lerp(scaled, x, gate)
            x = self.blocks[layer](x, x0)
        x = self.final_norm(x)
        logits = F.linear(x, self.tok_emb.weight)
        logits = SOFTCAP * torch.tanh(logits / SOFTCAP)
        return F.cross_entropy(logits.reshape(-1, logits.size(-1)).float(), targets.reshape(-1), reduction="mean")


def zeropower(g: Tensor, steps: int) -> Tensor:
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g / (g.norm() + 1e-7)
    transposed = g.size(0) > g.size(1)
    if transposed:
        x = x.T
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if transposed else x


class Muon(torch.optim.Optimizer):
    def __init__(self, params: list[Tensor], lr: float, momentum: float, steps: int, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "steps": steps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p.grad)
                buffer = state["momentum_buffer"]
                buffer.mul_(group["momentum"]).add_(p.grad)
                g = p.grad.add(buffer, alpha=group["momentum"])
                g = g / g.norm(dim=-1, keepdim=True).clamp_min(1e-7)
                g = zeropower(g, group["steps"])
                p.mul_(1.0 - group["lr"] * group["weight_decay"])
                p.add_(g, alpha=-group["lr"] * max(1, p.size(0) / p.size(1)) ** 0.5)


class ReferenceTraining:
    """Model, optimizers and EMA; `step` is one training step."""

    def __init__(self, vocab_size: int, dim: int, compile: bool = False) -> None:
        self.model = ReferenceGPT(vocab_size, dim, 4, dim // 32, max(1, dim // 64), 3 * dim, 16)
        matrices = [p for name, p in self.model.blocks.named_parameters() if p.ndim == 2 and "resid_mix" not in name]
        scalars = [p for name, p in self.model.blocks.named_parameters() if p.ndim < 2 or "resid_mix" in name]
        scalars += [self.model.skip_weights, self.model.skip_gates]
        self.optimizers = [
            torch.optim.AdamW([self.model.tok_emb.weight], lr=0.03, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.085),
            Muon(matrices, lr=0.022, momentum=0.97, steps=5, weight_decay=0.095),
            torch.optim.AdamW(scalars, lr=0.02, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.02),
        ]
        self.ema = {name: tensor.detach().float().clone() for name, tensor in self.model.state_dict().items()}
        self.loss = torch.compile(self.model, dynamic=False, fullgraph=True) if compile else self.model

    def step(self, tokens: Tensor, targets: Tensor) -> Tensor:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss = self.loss(tokens, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 0.3)
        for optimizer in self.optimizers:
            optimizer.step()
        with torch.no_grad():
            for name, tensor in self.model.state_dict().items():
                self.ema[name].mul_(0.997).add_(tensor.detach().float(), alpha=0.003)
        return loss.detach()
