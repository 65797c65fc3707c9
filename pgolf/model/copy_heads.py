"""Copy heads: the tokens that followed earlier occurrences of the last 1, 2, 3, ... tokens in the same document.

Hard-wired n-gram heads (arXiv 2401.12973) in place of induction heads, which a model of three layers does not form. An
earlier position matches in order n when the n tokens up to it equal the last n tokens; the token after it is a
candidate. `copy_depth` candidates per order, the latest first, each get a gate that is linear in the final hidden state
and, with `copy_token`, in the candidate's embedding. With `copy_logits` the gate is added to the candidate's logit
(a pointer, arXiv 1704.04368, in logits in place of probabilities); else the candidate's output embedding times the gate
is added to the state, so that with a tied head the logit of a candidate v rises by about gate * |E_v|^2, and those of
similar tokens too. With `copy_input` the latest candidate of each order is also added to the token's own embedding,
times a learned vector. Gates and vectors start at zero and are control tensors, not quantized. Matching is a sort of
integers per order.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf.config.model import ModelConfig
from pgolf.model.equal_keys import numbered
from pgolf.model.kernels import copies
from pgolf.model.raised_logits import Raised


class CopyHeads(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        orders = len(config.copy_orders)
        self.gate = nn.Parameter(torch.zeros(orders * config.copy_depth, config.dim))
        self.bias = nn.Parameter(torch.zeros(orders * config.copy_depth))
        self.on_token = nn.Parameter(torch.zeros(orders * config.copy_depth, config.dim)) if config.copy_token else None
        self.on_input = nn.Parameter(torch.zeros(orders, config.dim)) if config.copy_input else None
        self.native = False  # whether the C kernel searches and looks up

    def at_input(self, candidates: Tensor, table: Tensor, dtype: torch.dtype) -> Tensor | float:
        """The term added to the embedding, (B, T, dim); candidates (B, T, orders, depth), table (vocab_size, dim)."""
        if self.on_input is None:
            return 0.0
        latest = candidates[:, :, :, 0]  # (B, T, orders)
        if self.native:
            added = copies.look_up(latest.flatten(0, 1), table, self.on_input[:, None])
            return added.view(*latest.shape[:2], -1).to(dtype)
        found = F.embedding(latest.clamp(min=0), table) * (latest >= 0)[..., None]  # (B, T, orders, dim)
        return (found * self.on_input).sum(2).to(dtype)

    def forward(self, hidden: Tensor, candidates: Tensor, table: Tensor) -> Tensor:
        """hidden (B, T, dim) -> the term added to it, (B, T, dim); the other arguments as in `at_input`."""
        tokens, gates = self.raised(hidden, candidates, table)
        weights = gates.flatten(0, 1).to(table.dtype)
        if self.native:
            added = copies.look_up(tokens.flatten(0, 1), table, weights)
        else:
            added = F.embedding_bag(tokens.flatten(0, 1), table, mode="sum", per_sample_weights=weights)
        return added.view_as(hidden).to(hidden.dtype)

    def raised(self, hidden: Tensor, candidates: Tensor, table: Tensor) -> Raised:
        """The candidates and their gates, (B, T, orders * depth); the gate of a missing one is 0."""
        gates = F.linear(hidden, self.gate.to(hidden.dtype), self.bias.to(hidden.dtype))
        tokens = candidates.flatten(2)
        given, tokens = tokens >= 0, tokens.clamp(min=0)
        if self.on_token is not None:
            by_token = F.linear(table, self.on_token)  # (vocab_size, orders * depth)
            places = torch.arange(tokens.shape[2], device=tokens.device)
            gates = gates + by_token[tokens, places].to(gates.dtype)
        return Raised(tokens, gates * given)


def candidates(tokens: Tensor, config: ModelConfig, window: int = 0, native: bool = False) -> Tensor:
    """tokens (B, T) -> int64 (B, T, orders, depth): the tokens behind the latest matches of each order; -1 for none.

    window: largest distance of a match in tokens, the token itself included; 0: any in the row. A row's start counts
    as a document's. native: in the C kernel.
    """
    if native:
        return copies.candidates(tokens, sorted(config.copy_orders), config.copy_depth, config.bos_id, window)
    flat = tokens.flatten()
    count, step = len(flat), config.vocab_size
    place = torch.arange(count, device=flat.device)
    starts = tokens == config.bos_id
    starts[:, 0] = True
    starts = starts.flatten()
    gram = numbered(starts.cumsum(0) * step + flat)[0]  # equal where document and last token are
    found = []
    for order in range(1, max(config.copy_orders) + 1):
        if order > 1:
            # A context that crosses the start of a document matches nothing.
            gram = torch.where(starts, count + place, gram.roll(1)) * step + flat
        gram, ranked, same = numbered(gram)
        if order not in config.copy_orders:
            continue
        earlier = torch.full((count,), -1, device=flat.device)
        earlier[ranked[1:][same]] = ranked[:-1][same]
        match = earlier
        for _ in range(config.copy_depth):
            kept = match >= 0 if not window else (match >= 0) & (place - match < window)
            found.append(torch.where(kept, flat[(match + 1).clamp(max=count - 1)], -1))
            match = torch.where(match >= 0, earlier[match.clamp(min=0)], -1)
    return torch.stack(found, -1).view(*tokens.shape, len(config.copy_orders), config.copy_depth)
