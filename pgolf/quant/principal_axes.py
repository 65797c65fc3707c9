"""The embedding in the basis of its principal axes, where a model computes the same in any.

With a map behind the lookup and one before the tied head the basis of the embedding is free: E -> E V, and V goes into
the maps and into what reads output embeddings. Columns are coded one by one, each with its own step and tables; what
they have in common is coded over and over unless V takes it out. Then each column holds as little as it can:
transform coding (Goyal 2001), by the Karhunen-Loeve transform of the rows.
"""

import copy

import torch

from pgolf.model.gpt import GPT


def turned(model: GPT) -> GPT:
    """A copy of the model with its embedding turned; the model itself where the basis is not free."""
    copies = model.copy_heads
    if model.input_map is None or model.head_map is None or model.lm_head is not None or model.emb_proj is not None:
        return model
    if copies is not None and not model.config.copy_logits:  # embeddings are added to the final state
        return model
    model = copy.deepcopy(model)
    copies, counts, maps = model.copy_heads, model.counts, (model.input_map, model.head_map)
    assert maps[0] is not None
    assert maps[1] is not None
    with torch.no_grad():
        table = model.tok_emb.weight.double()
        axes = torch.linalg.eigh(table.T @ table)[1].flip(1)  # (dim, dim), the largest first
        model.tok_emb.weight.copy_(table @ axes)
        maps[0].weight.copy_(maps[0].weight.double() @ axes)
        maps[1].weight.copy_(axes.T @ maps[1].weight.double())
        if copies is not None and copies.on_token is not None:
            copies.on_token.copy_(copies.on_token.double() @ axes)
        if counts is not None:
            counts.on_token.copy_(counts.on_token.double() @ axes)
    return model
