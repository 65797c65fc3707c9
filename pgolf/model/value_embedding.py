"""Value embeddings: a separate table adds a vector per token to the values of chosen layers.

Challenge PR #374: one table of 128, projected to the values' width, times a scale per layer that starts at 0.1, on
the last two layers. Dropped at 8,192 tokens of vocabulary, where a table is worth more as width. `value_x0` is the
cheap form: the values read the normed embedding through the layer's own matrix.
"""

import torch
from torch import Tensor, nn

from pgolf.model.layers import Linear

TABLE_STD = 0.01  # PR #374
START = 0.1


class ValueEmbedding(nn.Module):
    def __init__(self, vocab_size: int, width: int, kv_dim: int, layers: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = layers
        self.table = nn.Embedding(vocab_size, width)
        nn.init.normal_(self.table.weight, std=TABLE_STD)
        self.proj = Linear(width, kv_dim)
        nn.init.orthogonal_(self.proj.weight)
        self.scales = nn.Parameter(torch.full((len(layers),), START))

    def forward(self, tokens: Tensor, dtype: torch.dtype) -> dict[int, Tensor]:
        """tokens (B, T) -> by layer, the term added to its values, (B, T, kv_dim)."""
        values = self.proj(self.table(tokens).to(dtype))
        return {layer: self.scales[i].to(dtype) * values for i, layer in enumerate(self.layers)}
