"""A hashed embedding of token pairs, added to the token's own (challenge record 2026-03-20, PR #549).

Row `(36313 id_t xor 27191 id_(t-1)) mod (rows - 1)`; the last row where there is no previous token: at the start of a
row and of a document. The table starts at zero, the projection orthogonal (were both zero, neither would ever learn),
times a learned 0.05. 2048 to 3072 rows: -0.0009 BPB at 1,024 tokens of vocabulary; worthless from 4,096 on (PR
#1218).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf.model.layers import Linear

MULTIPLIERS = (36_313, 27_191)
START = 0.05


class BigramEmbedding(nn.Module):
    def __init__(self, rows: int, width: int, dim: int, bos_id: int) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, width)
        nn.init.zeros_(self.table.weight)
        self.proj = Linear(width, dim)
        nn.init.orthogonal_(self.proj.weight)
        self.scale = nn.Parameter(torch.tensor(START))
        self.bos_id = bos_id

    def forward(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        """tokens (B, T) -> (B, T, dim)."""
        before = F.pad(tokens[:, :-1], (1, 0))
        row = torch.bitwise_xor(MULTIPLIERS[0] * tokens, MULTIPLIERS[1] * before) % (self.table.num_embeddings - 1)
        alone = tokens == self.bos_id
        alone[:, 0] = True
        row = torch.where(alone, self.table.num_embeddings - 1, row)
        return self.scale.to(dtype) * self.proj(self.table(row).to(dtype))
