"""Calibration against plain sums: every pass of a loop counts, gradients are those of autograd."""

import numpy as np
import pytest
import torch

from pgolf.config import ModelConfig
from pgolf.model.fast_paths import paths_by_rule
from pgolf.model.gpt import GPT
from pgolf.model.raced_pairs import Shape
from pgolf.quant import hessian
from pgolf.quant.divergence import Divergence
from pgolf.runtime import Runtime

SMALL = {"vocab_size": 40, "dim": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "loop_passes": 3}


def model_of(**changes: object) -> GPT:
    torch.manual_seed(0)
    model = GPT(ModelConfig(**(SMALL | changes)))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def batches(count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(2, 40, (4, 12), generator=generator) for _ in range(count)]


def test_every_pass_of_a_loop_is_seen() -> None:
    model, tokens = model_of(), batches()
    inputs: list[torch.Tensor] = []
    model.blocks[0].mlp.fc.register_forward_pre_hook(
        lambda module, arguments: inputs.append(arguments[0].flatten(0, 1))
    )
    with torch.no_grad():
        for batch in tokens:
            model.hidden(batch)
    assert len(inputs) == 3 * len(tokens)
    x = torch.cat(inputs).double()
    found = hessian.calibrate(model, tokens, gradients=False)["blocks.0.mlp.fc.weight"]
    np.testing.assert_allclose(found.curvature, (x.T @ x / len(x)).numpy(), rtol=1e-4, atol=1e-7)


def test_a_model_that_scores_in_c_is_seen_without_gradients_too(kernels: Runtime) -> None:
    model, tokens = model_of(loop_passes=1), batches()
    plain = hessian.calibrate(model, tokens, gradients=False)
    paths_by_rule(model, kernels, Shape(4, 12, True, 1), scoring=True)
    assert model.scoring is not None
    found = hessian.calibrate(model, tokens, gradients=False)
    assert model.scoring is not None
    for name, right in plain.items():
        np.testing.assert_allclose(found[name].curvature, right.curvature, rtol=1e-4, atol=1e-6)


def test_weights_keep_their_values_and_need_for_gradients() -> None:
    model = model_of()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hessian.calibrate(model, batches())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_a_matrix_that_the_loss_does_not_feel_yet_counts_all_inputs_alike() -> None:
    model = model_of()
    with torch.no_grad():
        model.blocks[0].mlp.proj.weight.zero_()  # as before any training: nothing reaches the loss through fc
    found = hessian.calibrate(model, batches())["blocks.0.mlp.fc.weight"]
    assert np.array_equal(found.curvature, np.eye(16))
    assert np.array_equal(found.output, np.ones(len(found.output)))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"embed_dim": 8, "tied_head": False, "bigram_rows": 50, "bigram_dim": 8},
        {"head_map": True, "input_map": True, "copy_orders": (1,), "copy_input": True, "canon_taps": 2},
        {"head_map": True, "copy_orders": (1,), "copy_logits": True, "copy_token": True, "document_counts": True},
    ],
)
def test_the_fisher_form_predicts_the_divergence_of_noise(changes: dict[str, object]) -> None:
    """½ tr(H_O E H_I Eᵀ) is the KL of a small random error in one matrix, within what the factored form neglects."""
    model, tokens = model_of(loop_passes=1, **changes), batches(40)
    statistics = hessian.calibrate(model, tokens)
    distance = Divergence(model, tokens[:20])
    assert set(statistics) == set(model.matrix_roles())
    ratios = []
    for name, found in statistics.items():
        weight = model.get_parameter(name)
        error = (
            0.02 * float(weight.detach().std()) * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))
        )
        e = error.double().numpy()
        output = np.diag(found.output) if found.output.ndim == 1 else found.output
        predicted = 0.5 * float(np.sum((output @ e @ found.curvature) * e))
        ratios.append(distance.of({name: weight.detach() + error}) / predicted)
    assert min(ratios) > 0.4
    assert max(ratios) < 2.5
    assert 0.75 < np.exp(np.mean(np.log(ratios))) < 1.33


def test_rows_of_a_table_count_by_lookups_and_their_own_gradients() -> None:
    """A row's weight is its share of Σ |g|² over lookups, smoothed as the constants say; g is autograd's."""
    model = model_of(loop_passes=1, embed_dim=8, tied_head=False)
    tokens = [torch.cat([batch, torch.full((4, 12), 7)]) for batch in batches(4)]  # one token in half of the text
    seen: list[torch.Tensor] = []
    assert model.emb_proj is not None
    handle = model.emb_proj.register_forward_pre_hook(
        lambda module, arguments: (
            arguments[0].register_hook(lambda gradient: seen.append(gradient.flatten(0, 1))) and None
        )
    )
    found = hessian.calibrate(model, tokens, seed=3)["tok_emb.weight"].output
    handle.remove()
    squares = torch.cat(seen).double().square().sum(1).numpy()
    ids = torch.cat([batch.flatten() for batch in tokens]).numpy()
    count, total = np.bincount(ids, minlength=40), np.bincount(ids, squares, minlength=40)
    own = (total + hessian.GRADIENT_COUNTS * squares.mean()) / (count + hessian.GRADIENT_COUNTS)
    expected = own * (count + hessian.PRIOR_COUNTS) / (len(ids) + 40 * hessian.PRIOR_COUNTS) / squares.mean()
    np.testing.assert_allclose(found, expected, rtol=1e-3)
