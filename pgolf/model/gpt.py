"""The language model: embedding, blocks in the order the loop schedule gives, final norm, softcapped logits.

Every part beyond the plain transformer is a module of its own, a field of `ModelConfig` and a line here.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf.config.model import ModelConfig
from pgolf.model.block import Block
from pgolf.model.layers import rms_norm
from pgolf.model.loop import layer_order
from pgolf.model.rotary import rotary_tables

CHUNK_TOKENS = 1024  # tokens whose logits exist at the same time


class GPT(nn.Module):
    """Tokens are int64 (B, T). Weights are float32; `compute_dtype` is the type of the activations."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = torch.float32
        self.looped = True
        self.tok_emb = nn.Embedding(config.vocab_size, config.dim)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self._tables: tuple[Tensor, Tensor] | None = None
        self._initialize()

    def _initialize(self) -> None:
        nn.init.normal_(self.tok_emb.weight, std=self.config.embed_init_std)
        for name, module in self.blocks.named_modules():
            if isinstance(module, nn.Linear):
                # Zero outputs: every block starts as the identity (the records' initialization).
                nn.init.zeros_(module.weight) if name.endswith(".proj") else nn.init.orthogonal_(module.weight)

    def set_looped(self, looped: bool) -> None:
        """Whether the looped range runs more than once."""
        self.looped = looped

    def set_window(self, window: int) -> None:
        """Tokens back that each layer's attention sees, the query's own included; 0: all of the sequence."""
        for block in self.blocks:
            cast(Block, block).attn.window = window

    def set_progress(self, fraction: float) -> None:
        """Tell the model how much of training is done, 0 to 1: parts that switch on or fade out look at it."""
        self.set_looped(fraction >= self.config.loop_from)

    def layer_order(self) -> list[int]:
        """Physical layer of every block executed now: training or evaluation depth by `self.training`."""
        passes = self.config.loop_passes
        if not self.training and self.config.eval_loop_passes:
            passes = self.config.eval_loop_passes
        return layer_order(self.config, passes if self.looped else 1)

    def hidden(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) -> (B, T, dim) after the final norm."""
        x = x0 = rms_norm(self.tok_emb(tokens).to(self.compute_dtype))
        cos, sin = self._rotary(tokens.shape[1], tokens.device)
        for layer in self.layer_order():
            x = self.blocks[layer](x, x0, cos, sin)
        return rms_norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (..., dim) -> (..., vocab_size) float32, softcapped."""
        z = F.linear(hidden, self.tok_emb.weight.to(hidden.dtype)).float()
        cap = self.config.logit_softcap
        return cap * torch.tanh(z / cap) if cap else z

    def token_losses(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Negative log-likelihood of each target in nats, (B, T) float32."""
        hidden, flat = self.hidden(tokens).flatten(0, 1), targets.flatten()
        parts = [
            F.cross_entropy(self.logits(hidden[i : i + CHUNK_TOKENS]), flat[i : i + CHUNK_TOKENS], reduction="none")
            for i in range(0, len(flat), CHUNK_TOKENS)
        ]
        return torch.cat(parts).view(targets.shape)

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The training loss: mean nats per token and whatever terms exist in training only. A scalar."""
        return self.token_losses(tokens, targets).mean()

    def matrix_roles(self) -> dict[str, str]:
        """Role of every weight matrix to be quantized, by parameter name; all else is a control tensor."""
        roles = {"tok_emb.weight": "embed"}
        for name, module in self.blocks.named_modules(prefix="blocks"):
            if isinstance(module, nn.Linear):
                roles[f"{name}.weight"] = "attn" if ".attn." in name else "mlp"
        return roles

    def _rotary(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        if self._tables is None or len(self._tables[0]) < length or self._tables[0].device != device:
            dims = self.config.rope_dims or self.config.dim // self.config.num_heads
            self._tables = rotary_tables(length, dims, self.config.rope_base, device)
        cos, sin = self._tables
        return cos[:length], sin[:length]
