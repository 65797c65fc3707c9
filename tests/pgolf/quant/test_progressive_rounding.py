"""Rounding share by share: what is rounded stays, what is left learns, and all at once is what the plan gives."""

import copy
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from pgolf.config.optim import OptimConfig
from pgolf.model.gpt import GPT
from pgolf.quant import hessian, waterfill
from pgolf.quant.allocate import Plan
from pgolf.quant.divergence import Divergence
from pgolf.quant.progressive_rounding import STEP_RATE, Gradual
from pgolf.quantized.tensors import dequantize
from tests.pgolf.quant.test_hessian import batches, model_of


@pytest.fixture(scope="module")
def model() -> GPT:
    return model_of()


def plan_of(model: GPT, bits: float = 2.0) -> Plan:
    found = hessian.calibrate(model, batches(20))
    problems = {
        name: waterfill.prepare(
            model.get_parameter(name).detach().double().numpy(), role, found[name].curvature, found[name].output, 0.01
        )
        for name, role in model.matrix_roles().items()
    }
    plan = Plan(problems, waterfill.Rounding(resolution=4), threads=1)
    plan.last_log2_c = plan.log2_c_for_bits(bits, list(problems))
    return plan


def weights(gradual: Gradual) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in gradual._student.named_parameters()}


def train(gradual: Gradual, tokens: Sequence[torch.Tensor], done: float = 0.0, until: float = 1.0) -> list[float]:
    seen: list[float] = []
    gradual.train(tokens, done, until, seen.append)
    return seen


def test_all_columns_at_once_are_the_plans_own_rounding(model: GPT) -> None:
    plan = plan_of(model)
    gradual = Gradual(model, plan, optim=OptimConfig(), lr=0.002)
    gradual.round_share(1.0)
    for name, tensor in plan.round(plan.last_log2_c).items():
        found = gradual.round(0.0)[name]
        np.testing.assert_array_equal(found.symbols, tensor.symbols)
        assert torch.equal(dequantize(found), dequantize(tensor))


def test_rounded_columns_stay_and_the_rest_is_trained(model: GPT) -> None:
    original = copy.deepcopy(model.state_dict())
    plan = plan_of(model)
    gradual = Gradual(model, plan, optim=OptimConfig(), lr=0.002)
    gradual.round_share(0.5)
    before = weights(gradual)
    losses = train(gradual, batches(8), 0.0, 0.5)
    after = weights(gradual)
    assert len(losses) == 8
    for name in model.matrix_roles():
        free, done = np.split(plan.problems[name].order, [before[name].shape[1] // 2])
        assert torch.equal(before[name][:, done], after[name][:, done])
        assert (before[name][:, free] != after[name][:, free]).any(dim=0).all()
    gradual.round_share(1.0)
    train(gradual, batches(2), 0.5, 1.0)
    final = weights(gradual)
    for name, tensor in gradual.round(0.0).items():
        done = plan.problems[name].order[final[name].shape[1] // 2 :]
        assert torch.equal(final[name], dequantize(tensor))
        assert torch.equal(final[name][:, done], after[name][:, done])
    assert set(gradual.controls()) == set(final) - set(model.matrix_roles())
    assert all(torch.equal(original[name], tensor) for name, tensor in model.state_dict().items())


def test_the_optimizers_forget_what_is_rounded(model: GPT) -> None:
    """Averages that only decay become subnormal after some hundred steps, and each step ten times as slow."""
    plan = plan_of(model)
    gradual = Gradual(model, plan, optim=OptimConfig(), lr=0.002)
    train(gradual, batches(4), 0.0, 0.5)
    gradual.round_share(0.5)
    flat, embed = gradual._flat, gradual._adam[0]
    averages = torch.zeros_like(flat.data), torch.zeros_like(flat.data)
    flat.span(averages[0], "matrix").copy_(gradual._muon.momentum)
    flat.span(averages[0], "embed").copy_(embed.first)
    flat.span(averages[1], "embed").copy_(embed.second)
    for name in model.matrix_roles():
        free, done = np.split(plan.problems[name].order, [plan.problems[name].weight.shape[1] // 2])
        momentum = flat.view(averages[0], name)
        assert momentum[:, free].any(dim=0).all()
        assert not momentum[:, done].any()
        assert not flat.view(averages[1], name)[:, done].any()


def test_training_in_between_repairs_what_rounding_broke(model: GPT) -> None:
    plan, distance = plan_of(model), Divergence(model, batches(4))
    found = []
    for steps in (0, 40):
        gradual = Gradual(model, plan, optim=OptimConfig(), lr=0.002)
        for number, share in enumerate((0.5, 0.75, 1.0)):
            gradual.round_share(share)
            train(gradual, [b for _ in range(steps) for b in batches(1)], number / 3, (number + 1) / 3)
        found.append(distance.of(weights(gradual)))
    assert found[1] < 0.8 * found[0]


def test_the_learning_rate_is_in_proportion_to_the_steps(model: GPT) -> None:
    """The plan's own steps, weight by weight; a bit more halves them, and with them the rate."""
    plan, logs = plan_of(model), []
    for name, problem in plan.problems.items():
        steps = waterfill.choose_steps(problem, plan.last_log2_c + plan.offsets[name], plan.rounding.resolution)
        logs += (steps.rows[:, None] + steps.columns[None, :]).ravel().tolist()
    coarse = Gradual(model, plan, optim=OptimConfig(), lr=0.0)
    assert coarse.mean_step == pytest.approx(2 ** np.mean(logs))
    assert coarse.lr == pytest.approx(STEP_RATE * coarse.mean_step)
    plan.last_log2_c -= 1
    assert Gradual(model, plan, optim=OptimConfig(), lr=0.0).lr == pytest.approx(coarse.lr / 2)
    assert Gradual(model, plan, optim=OptimConfig(), lr=0.002).lr == 0.002


def test_timing_a_step_leaves_no_trace(model: GPT) -> None:
    timed, plain = (Gradual(model, plan_of(model), optim=OptimConfig(), lr=0.002) for _ in range(2))
    assert timed.seconds_per_step(batches(3)) > 0
    for gradual in (timed, plain):
        gradual.round_share(0.5)
        train(gradual, batches(4))
    assert all(torch.equal(a, b) for a, b in zip(weights(timed).values(), weights(plain).values(), strict=True))


def test_moving_the_last_share_leaves_the_others_alone(model: GPT) -> None:
    plan = plan_of(model)
    gradual = Gradual(model, plan, optim=OptimConfig(), lr=0.002)
    gradual.round_share(0.75)
    gradual.round_share(1.0)
    here, coarse = gradual.round(0.0), gradual.round(2.0)
    for name, tensor in here.items():
        last, done = np.split(plan.problems[name].order, [tensor.symbols.shape[1] // 4])
        np.testing.assert_array_equal(tensor.symbols[:, done], coarse[name].symbols[:, done])
        np.testing.assert_array_equal(tensor.row_scale, coarse[name].row_scale)
        assert np.all(coarse[name].col_scale[last] > tensor.col_scale[last])
        assert np.abs(coarse[name].symbols[:, last]).sum() < np.abs(tensor.symbols[:, last]).sum()
    assert gradual.weights == sum(tensor.symbols.size for tensor in here.values()) // 4
