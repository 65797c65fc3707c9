"""The MLP in C against plain torch in float64, gradients included."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from pgolf import config as configs
from pgolf.model.gpt import GPT
from pgolf.model.kernels import mlp
from pgolf.model.paths import MLPS, use_paths
from pgolf.runtime import Runtime

SIZES = [(1, 8, 8), (63, 80, 240), (1100, 24, 72), (600, 13, 37), (2, 100, 300)]


@pytest.mark.parametrize(("count", "width", "hidden"), SIZES)
@pytest.mark.parametrize("slope", [0.0, 0.5])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("adds", [False, True])
def test_values_and_gradients(
    count: int, width: int, hidden: int, slope: float, threads: int, adds: bool, kernels: Runtime
) -> None:
    torch.manual_seed(0)
    x, onto, grad = torch.randn(3, count, width, dtype=torch.float64)
    fc, proj = torch.randn(hidden, width).double() / width**0.5, torch.randn(width, hidden).double() / hidden**0.5
    inputs = [part.requires_grad_() for part in (x, fc, proj, *[onto] * adds)]
    plain = F.leaky_relu(x @ fc.T, slope).square() @ proj.T + (onto if adds else 0.0)
    wanted = [plain, *torch.autograd.grad(plain, inputs, grad)]
    singles = [part.detach().float().requires_grad_() for part in inputs]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        fast = mlp.mlp(*singles[:3], slope, singles[3] if adds else None)[0]
        found = [fast, *torch.autograd.grad(fast, singles, grad.float())]
    finally:
        torch.set_num_threads(before)
    for mine, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(
            mine.double(), right, rtol=0, atol=2e-6 * max(1.0, float(right.detach().abs().max()))
        )


def test_the_number_of_threads_changes_no_bit(kernels: Runtime) -> None:
    torch.manual_seed(0)
    x, grad, fc, proj = torch.randn(1500, 24), torch.randn(1500, 24), torch.randn(72, 24), torch.randn(24, 72)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y, z = mlp.mlp(x, fc, proj, 0.5, None)
            results.append([y, *mlp.mlp_backward(grad, x, fc, proj, z, 0.5)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_a_model_trains_the_same_and_bfloat16_keeps_it_off(kernels: Runtime) -> None:
    torch.manual_seed(0)
    model = GPT(dataclasses.replace(configs.load("mini").model, vocab_size=256)).train()
    tokens = torch.randint(256, (2, 49))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    results = []
    for names in ((), (MLPS,)):
        use_paths(model, names)
        assert model.blocks[0].mlp.native == bool(names)
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        results.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for right, mine in zip(*results, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-5)
    for products in ("bfloat16 products", "bfloat16 in C"):
        use_paths(model, [MLPS, products])
        assert not model.blocks[0].mlp.native
