"""Quantization noise in training: its variance, that it leaves the weights alone, and that a run with it continues."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator

import gloo_rank
import numpy as np
import pytest
import torch
from torch import Tensor

from pgolf import config as configs
from pgolf.config import Config
from pgolf.errors import PgolfError
from pgolf.model.gpt import GPT
from pgolf.quant.hessian import Calibration
from pgolf.runtime import Runtime
from pgolf.tokens.loader import Loader
from pgolf.training.trainer import Trainer
from pgolf.training.weight_noise import spectrum, water_fill

ALONE = Runtime(torch.device("cpu"), torch.float32, 0, 1, 1, compile=False)


def settings(*more: str) -> Config:
    return configs.load(None, None, [*gloo_rank.SETTINGS, "train.iterations=10", "train.noise_from=0.4", *more])


@contextlib.contextmanager
def trainer(config: Config) -> Iterator[Trainer]:
    numbers = gloo_rank.TokenStream([np.random.default_rng(0).integers(3, 64, 4000).astype("uint16")], "train")
    torch.manual_seed(0)
    with Loader(numbers, 0) as loader:
        yield Trainer(GPT(config.model).train(), loader, config, ALONE)


def train(made: Trainer, start: int, stop: int) -> Tensor:
    for iteration in range(start, stop):
        made.step(iteration / 10)
    return made.flat.data.clone()


@pytest.fixture(scope="module")
def plain() -> list[Tensor]:
    """Weights after four and after ten steps without noise."""
    with trainer(settings()) as made:
        return [train(made, 0, 4), train(made, 4, 10)]


def test_a_common_level_for_all_weights() -> None:
    """Two matrices whose bits are known: 3 + 1 and 1 + 0 bits for variances of 64, 4, 4 and 1/4 over a level of 1."""
    parts = [(torch.tensor([[64.0, 4.0]]), torch.ones(1, 2)), (torch.tensor([[1.0, 1 / 16]]), torch.full((1, 2), 4.0))]
    high, low = water_fill(parts, (3 + 1 + 1 + 0) / 4)
    assert high.square().numpy() == pytest.approx(np.array([[1 - 1 / 64, 1 - 1 / 4]]), rel=1e-3)
    assert low.square().numpy() == pytest.approx(np.array([[(1 - 1 / 4) / 4, 0.0]]), rel=1e-3, abs=1e-6)


def test_eigenbases_keep_the_quadratic_form() -> None:
    """For an error E with the variances of a spectrum, the expectation of tr(H_O E H_I Eᵀ) is the sum of variance times
    curvature."""
    random = np.random.default_rng(1)
    outer, inner = (np.cov(random.normal(size=(size, 40))) for size in (5, 7))
    weight = torch.from_numpy(random.normal(size=(5, 7))).float()
    variance, curvature, left, right = spectrum(weight, Calibration(inner, outer), 0.0)
    rotated = left.T @ weight.double() @ right
    assert float(variance.sum()) == pytest.approx(float(weight.square().sum()), rel=1e-5)
    exact = np.trace(outer @ weight.double().numpy() @ inner @ weight.double().numpy().T)
    assert float((rotated.square() * curvature).sum()) == pytest.approx(exact, rel=1e-6)
    diagonal = spectrum(weight, Calibration(inner, np.diag(outer).copy()), 0.0)
    assert diagonal[2].shape == (0, 0)
    assert (diagonal[1][:, 0] / diagonal[1][0, 0]).numpy() == pytest.approx(np.diag(outer) / outer[0, 0])


def test_noise_has_the_variance_it_says_and_is_gone_afterwards() -> None:
    with trainer(settings("train.noise_bits=2")) as made:
        before = train(made, 0, 5)
        assert made.noise is not None
        name = "blocks.1.mlp.fc.weight"
        state = made.noise.state()
        left, right = state[f"noise.left.{name}"], state[f"noise.right.{name}"]
        deviation = made.flat.view(state["noise.deviation"], name)
        squares, total = torch.zeros_like(deviation), torch.zeros_like(before)
        for iteration in range(600):
            with made.noise.applied(iteration, 0.45):
                total += made.flat.data - before
                noise = made.flat.view(made.flat.data, name) - made.flat.view(before, name)
            squares += (left.T @ noise @ right).square() / 600
            if iteration % 2:
                assert float(total.abs().max()) < 1e-6  # the two of a pair cancel
                total.zero_()
        assert torch.equal(made.flat.data, before)
        assert float(deviation.min()) >= 0
        assert float(squares.sum()) == pytest.approx(float(deviation.square().sum()), rel=0.05)
        loud = deviation > deviation.mean()
        ratios = squares[loud] / deviation[loud].square()  # 300 independent draws: a deviation of 0.08
        assert float((ratios - 1).abs().mean()) == pytest.approx(math.sqrt(2 / 300) * 0.8, rel=0.3)
        with made.noise.applied(0, 0.3):
            assert torch.equal(made.flat.data, before)  # before `train.noise_from`


def test_it_is_off_until_it_begins_and_then_changes_the_weights(plain: list[Tensor]) -> None:
    with trainer(settings("train.noise_bits=2")) as made:
        assert torch.equal(train(made, 0, 4), plain[0])
        noisy = train(made, 4, 10)
    assert not torch.equal(noisy, plain[1])
    with trainer(settings("train.noise_bits=2", "train.noise_anneal=true")) as made:
        assert not torch.equal(train(made, 0, 10), noisy)
    with trainer(settings("train.noise_bits=12")) as made:  # hardly any
        assert float((train(made, 0, 10) - plain[1]).norm()) < 0.2 * float((noisy - plain[1]).norm())


def test_a_run_continues_from_its_snapshot() -> None:
    config = settings("train.noise_bits=2")
    with trainer(config) as made:
        train(made, 0, 7)
        tensors, values = made.snapshot()
        whole = train(made, 7, 10)
    with trainer(config) as again:
        again.restore(tensors, values)
        assert torch.equal(train(again, 7, 10), whole)


def test_settings_are_checked() -> None:
    with pytest.raises(PgolfError, match=r"train\.noise_from is 1; it must be from 0 up to below 1"):
        settings("train.noise_from=1.0")
    with pytest.raises(PgolfError, match=r"train\.noise_bits is -1"):
        dataclasses.replace(settings().train, noise_bits=-1)
