"""Residual sum, norm and short convolution in C against the formulas in plain torch, gradients included."""

import dataclasses

import pytest
import torch
from torch import Tensor

from pgolf import config as configs
from pgolf.model.canon import Canon
from pgolf.model.gpt import GPT
from pgolf.model.kernels import residual
from pgolf.model.layers import rms_norm
from pgolf.model.paths import IN_C, NORMS, use_paths
from pgolf.runtime import Runtime


@pytest.mark.parametrize(("rows", "length", "dim"), [(2, 150, 80), (3, 64, 20), (1, 2, 24)])
@pytest.mark.parametrize("taps", [0, 3])
@pytest.mark.parametrize("mixes", [0, 2, 3])
@pytest.mark.parametrize("threads", [1, 2])
def test_values_and_gradients(
    rows: int, length: int, dim: int, taps: int, mixes: int, threads: int, kernels: Runtime
) -> None:
    torch.manual_seed(0)
    x, other, skip, *grads = torch.randn(5, rows, length, dim).unbind()
    inside, factor = (torch.rand(rows, length, 1) > 0.1).float(), torch.tensor(0.7)
    canon, mix = Canon(taps, dim), torch.randn(max(mixes, 1), dim, requires_grad=True)
    with torch.no_grad():
        canon.taps.normal_()
    inputs = [x.requires_grad_(), other.requires_grad_()]
    inputs += [mix] * bool(mixes) + [skip.requires_grad_()] * (mixes == 3) + [canon.taps] * bool(taps)
    mixed = sum(row * part for row, part in zip(mix, (x, other, skip), strict=False)) if mixes else x + other
    plain = mixed, canon(rms_norm(mixed) * factor, inside)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        given = (canon.taps, inside) if taps else (None, None)
        fast = residual.enter(x, other, skip if mixes == 3 else None, mix if mixes else None, *given, factor)
        found = torch.autograd.grad(fast, inputs, grads)
    finally:
        torch.set_num_threads(before)
    for mine, right in zip((*fast, *found), (*plain, *torch.autograd.grad(plain, inputs, grads)), strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 150, 80), (3, 20), (1, 2, 24)])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_norm_alone(shape: tuple[int, ...], threads: int, kernels: Runtime) -> None:
    torch.manual_seed(0)
    x, grad = torch.randn(2, *shape, dtype=torch.float64)
    plain = rms_norm(x.requires_grad_())
    single = x.detach().float().requires_grad_()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        fast = residual.norm(single)
        [found] = torch.autograd.grad(fast, single, grad.float())
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(fast.double(), plain, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.double(), torch.autograd.grad(plain, x, grad)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("preset", "skips"),
    [("mini", {}), ("demo", {}), ("demo", {"skips": True}), ("demo", {"skips": True, "skip_gates": False})],
)
def test_a_model_has_the_same_loss_and_gradients(preset: str, skips: dict[str, bool], kernels: Runtime) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(configs.load(preset).model, vocab_size=256, **skips)
    model, tokens = GPT(config).train(), torch.randint(256, (2, 49))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)

    def gradients() -> list[Tensor]:
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        return [loss, *torch.autograd.grad(loss, list(model.parameters()))]

    plain = gradients()
    use_paths(model, [NORMS, *IN_C[:2]])
    for mine, right in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-5)
