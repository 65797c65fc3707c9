"""An embedding with shared components against its two parts, each its own parameter under torch's AdamW."""

import torch
from torch import nn

from pgolf.config.optim import OptimConfig
from pgolf.optim.flat import FlatParameters
from pgolf.optim.optimizer import Optimizer


class Table(nn.Module):
    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.tok_emb = nn.Embedding(rows, width)


def test_the_rows_are_their_own_part_and_a_shared_one_that_learn_side_by_side() -> None:
    torch.manual_seed(0)
    model, coordinates = Table(11, 6), torch.randn(11, 3)
    own, shared = model.tok_emb.weight.detach().clone().requires_grad_(), torch.zeros(3, 6, requires_grad=True)
    right = torch.optim.AdamW(
        [{"params": [own], "weight_decay": 0.3}, {"params": [shared], "lr": 0.02 * 0.4, "weight_decay": 0.3 / 0.4}],
        lr=0.02, betas=(0.9, 0.99), eps=1e-8,
    )  # fmt: skip
    config = OptimConfig(embed_lr=0.02, embed_decay=0.3, embed_betas=(0.9, 0.99), shared_lr=0.4, warmdown=0.0)
    flat = FlatParameters(model, {"tok_emb.weight": "embed"})
    optimizer = Optimizer(flat, config, likeness=coordinates)
    for step in range(20):
        wanted = torch.randn(11, 6)
        right.zero_grad()
        (own + coordinates @ shared - wanted).square().sum().backward()
        right.step()
        flat.zero_grad()
        (model.tok_emb.weight - wanted).square().sum().backward()
        optimizer.step(step, 0.0)
        torch.testing.assert_close(model.tok_emb.weight, own + coordinates @ shared, rtol=1e-5, atol=1e-6)
