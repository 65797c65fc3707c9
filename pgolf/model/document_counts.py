"""Document counts: tokens that the document already holds get a higher logit, by a gate times the log of their count.

A unigram cache (Kuhn and De Mori 1990) inside the model, trained with it: the logit of token v at position t rises by
(g . h_t + b + u . E_v) * ln(1 + n_v), with h_t the final state, E_v the output embedding and n_v the number of v in the
document up to t. It is computed as a sum over positions, in which occurrence k weighs ln(1 + 1 / k). The parameters g,
b and u start at zero and are control tensors, not quantized. A second count that fades with a half-life of 32 tokens
gained nothing (benchmarks/results/mini_ladder.md).

The pairs of positions of a row, (B, T, T), are many more than the numbers that they are made of. Where the C kernel
runs, the training loss takes the latter (`copies.Counted`) and applies them to each chunk of logits.
"""

import torch
from torch import Tensor, nn

from pgolf.config.model import ModelConfig
from pgolf.model.attention_mask import document_starts
from pgolf.model.equal_keys import numbered
from pgolf.model.kernels import copies
from pgolf.model.raised_logits import Raised, Raising


class DocumentCounts(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.bos_id = config.bos_id
        self.gate = nn.Parameter(torch.zeros(config.dim))
        self.bias = nn.Parameter(torch.zeros(()))
        self.on_token = nn.Parameter(torch.zeros(config.embed_dim or config.dim))
        self.native = False  # whether the C kernel computes what all positions raise

    def forward(self, hidden: Tensor, tokens: Tensor, table: Tensor) -> Raising:
        """What the last L of tokens (B, T) raise with their final states, hidden (B, L, dim): (B, L, T).

        table: output embedding (vocab_size, dim or embed_dim). A row's start counts as a document's.
        """
        asked, length, tokens = hidden.shape[1], tokens.shape[1], tokens.contiguous()
        first = document_starts(tokens, self.bos_id)  # (B, T)
        weights = _weights(tokens, first)
        gates = hidden @ self.gate.to(hidden.dtype) + self.bias.to(hidden.dtype)  # (B, L)
        by_token = (table @ self.on_token).to(hidden.dtype)[tokens]  # (B, T)
        if self.native and asked == length and hidden.dtype == torch.float32:
            return copies.Counted(tokens, first, gates, by_token, weights)
        place = torch.arange(length, device=tokens.device)
        asking = place[length - asked :, None]
        seen = (place <= asking) & (place >= first[:, length - asked :, None])  # (B, L, T)
        amounts = (gates[:, :, None] + by_token[:, None]) * weights.to(hidden.dtype)[:, None] * seen
        return Raised(torch.where(seen, tokens[:, None], 0), amounts)


def _weights(tokens: Tensor, first: Tensor) -> Tensor:
    """ln(1 + 1 / k) of each token, the k-th of its kind in its document, (B, T) float32; first (B, T), where in
    its row the document starts."""
    rows = torch.arange(len(tokens), device=tokens.device)[:, None]
    keys = (((rows << 24) + first) << 24) + tokens
    _, ranked, same = numbered(keys.flatten())
    place = torch.arange(len(ranked), device=tokens.device)
    begun = torch.zeros_like(place)  # where the run of equal keys begins
    begun[1:] = torch.where(same, 0, place[1:])
    number = torch.empty_like(place)
    number[ranked] = place - begun.cummax(0).values + 1
    return (1 / number.double()).log1p().float().view_as(tokens)
