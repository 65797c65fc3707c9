"""A turned embedding computes the same, with columns that have nothing in common."""

import dataclasses

import pytest
import torch

from pgolf import config as configs
from pgolf.config import ModelConfig
from pgolf.model.gpt import GPT
from pgolf.quant import principal_axes

CONFIG: ModelConfig = dataclasses.replace(configs.load("mini").model, vocab_size=200, dim=32, input_map=True)


def disturbed(**changes: object) -> GPT:
    torch.manual_seed(0)
    model = GPT(dataclasses.replace(CONFIG, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"copy_token": False},
        {"document_counts": False},
        {"copy_orders": (), "copy_logits": False, "copy_token": False, "copy_input": False},
    ],
)
def test_it_computes_the_same_in_decorrelated_columns(changes: dict[str, object]) -> None:
    model = disturbed(**changes)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    turned = principal_axes.turned(model)
    tokens = torch.randint(200, (2, 60))
    found, right = (made.token_losses(tokens[:, :-1], tokens[:, 1:].contiguous()) for made in (turned, model))
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)
    squares = turned.tok_emb.weight.double().T @ turned.tok_emb.weight.double()
    assert (squares - squares.diag().diag()).abs().max() < 1e-5 * squares.diag().max()
    assert squares.diag().diff().max() < 1e-5 * squares.diag().max()  # the largest first
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "changes", [{"input_map": False}, {"head_map": False}, {"copy_logits": False, "copy_token": False}]
)
def test_an_embedding_whose_basis_is_not_free_stays(changes: dict[str, object]) -> None:
    model = disturbed(**changes)
    assert principal_axes.turned(model) is model
