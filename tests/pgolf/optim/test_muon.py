"""The stacked, flat optimizers against plain ones that go tensor by tensor."""

import pytest
import torch
from torch import Tensor, nn

from pgolf.config import OptimConfig
from pgolf.optim.flat import FlatParameters, parameter_groups
from pgolf.optim.newton_schulz import POLAR_EXPRESS, coefficients, orthogonalize
from pgolf.optim.optimizer import Optimizer

SHAPES = {"a": (8, 8), "b": (8, 8), "c": (4, 8), "d": (24, 8), "e": (8, 24), "f": (24, 8), "g": (5, 7)}


class Bag(nn.Module):
    """Matrices of several shapes, some of them each other's transposes, an embedding and two vectors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.tok_emb = nn.Embedding(11, 8)
        for name, shape in SHAPES.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))
        self.gain = nn.Parameter(torch.randn(9))
        self.scale = nn.Parameter(torch.randn(()))

    def groups(self) -> dict[str, str]:
        return parameter_groups(self, {"tok_emb.weight": "embed"} | dict.fromkeys(SHAPES, "mlp"))


def plain_orthogonal(x: Tensor, rows: tuple[tuple[float, float, float], ...]) -> Tensor:
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for a, b, c in rows:
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if tall else x


def plain_steps(bag: Bag, config: OptimConfig, gradients: list[dict[str, Tensor]], lr: dict[str, float]) -> None:
    """Muon matrix by matrix and torch's AdamW tensor by tensor."""
    rows = coefficients(config.newton_schulz, config.newton_schulz_steps)
    named = dict(bag.named_parameters())
    momenta = {name: torch.zeros_like(named[name]) for name in SHAPES}
    neurons = {name: torch.zeros(SHAPES[name][0], 1) for name in SHAPES}
    adams = [
        torch.optim.AdamW(
            [bag.tok_emb.weight], lr["embed"], config.embed_betas, config.adam_epsilon, config.embed_decay
        ),
        torch.optim.AdamW(
            [bag.gain, bag.scale], lr["scalar"], config.scalar_betas, config.adam_epsilon, config.scalar_decay
        ),
    ]
    for step in gradients:
        for name, parameter in named.items():
            parameter.grad = step[name].clone()
        for adam in adams:
            adam.step()
        for name, momentum in momenta.items():
            parameter, grad = named[name], step[name]
            momentum.mul_(config.momentum).add_(grad)
            update = grad + config.momentum * momentum if config.nesterov else momentum.clone()
            if config.row_equalize:
                update = update / update.norm(dim=1, keepdim=True).clamp(min=1e-7)
            update = plain_orthogonal(update, rows)
            if config.neuron_beta:
                before = update.norm()
                neurons[name].lerp_(update.square().mean(1, keepdim=True), 1 - config.neuron_beta)
                update = update / (neurons[name].sqrt() + 1e-10)
                update = update * (before / (update.norm() + 1e-10))
            update = update * max(1, update.shape[0] / update.shape[1]) ** 0.5
            with torch.no_grad():
                kept = update * parameter > 0 if config.cautious_decay else torch.ones_like(parameter)
                parameter.sub_(lr["matrix"] * config.matrix_decay * kept * parameter)
                parameter.sub_(lr["matrix"] * update)


def random_gradients(bag: Bag, steps: int) -> list[dict[str, Tensor]]:
    named = dict(bag.named_parameters())
    return [{name: torch.randn_like(parameter) for name, parameter in named.items()} for _ in range(steps)]


def settings() -> list[OptimConfig]:
    common = {
        "newton_schulz_dtype": "float32",
        "warmdown": 0.0,
        "momentum_warmup": 0,
        "matrix_decay": 0.1,
        "scalar_decay": 0.02,
    }
    return [
        OptimConfig(**common, newton_schulz="fixed", row_equalize=False, momentum=0.95),  # the seed's kind
        OptimConfig(**common),
        OptimConfig(**common, neuron_beta=0.9, cautious_decay=True, nesterov=False, newton_schulz_steps=4),
    ]


@pytest.mark.parametrize("config", settings(), ids=["fixed", "equalized", "neurons"])
def test_stacked_equals_plain(config: OptimConfig) -> None:
    fast, plain = Bag(), Bag()
    gradients = random_gradients(fast, 4)
    flat = FlatParameters(fast, fast.groups())
    optimizer = Optimizer(flat, config)
    for iteration, step in enumerate(gradients):
        flat.zero_grad()
        for name, parameter in fast.named_parameters():
            assert parameter.grad is not None
            parameter.grad.add_(step[name])
        optimizer.step(iteration, 0.0)
    lr = {"matrix": config.matrix_lr, "embed": config.embed_lr, "scalar": config.scalar_lr}
    plain_steps(plain, config, gradients, lr)
    for (name, mine), (_, theirs) in zip(fast.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("steps", sorted(POLAR_EXPRESS))
def test_polar_express_brings_singular_values_near_one(steps: int) -> None:
    lowest = {3: 0.05, 4: 0.01, 5: 0.005}[steps]
    x = torch.logspace(0, torch.log10(torch.tensor(lowest)).item(), 16)
    values = torch.linalg.svdvals(orthogonalize(torch.diag(x / x.norm() * x.norm())[None], POLAR_EXPRESS[steps])[0])
    assert values.min() > 0.5
    assert values.max() < 1.2


def test_bfloat16_keeps_the_direction() -> None:
    torch.manual_seed(0)
    stack = torch.randn(3, 16, 64)
    rows = coefficients("polar-express", 5)
    exact, rough = orthogonalize(stack, rows), orthogonalize(stack.bfloat16(), rows).float()
    assert torch.nn.functional.cosine_similarity(exact.flatten(1), rough.flatten(1)).min() > 0.9995


def test_flat_buffers_are_the_models_own_tensors() -> None:
    bag = Bag()
    before = {name: tensor.clone() for name, tensor in bag.state_dict().items()}
    flat = FlatParameters(bag, bag.groups())
    for name, tensor in bag.state_dict().items():
        assert torch.equal(tensor, before[name])
    (bag.d.square().sum() + bag.scale * 3).backward()
    assert torch.equal(flat.view(flat.grad, "d"), 2 * bag.d)
    assert flat.view(flat.grad, "scale").item() == 3
    flat.data.zero_()
    assert not any(parameter.any() for parameter in bag.parameters())
    by_shape = {bank.shape: bank.names for bank in flat.banks}
    assert by_shape[8, 8] == ("a", "b")
    assert by_shape[24, 8] == ("d", "f")


def test_clipping_scales_to_the_global_norm() -> None:
    bag = Bag()
    flat = FlatParameters(bag, bag.groups())
    optimizer = Optimizer(flat, OptimConfig(grad_clip=0.5))
    sum(parameter.square().sum() for parameter in bag.parameters()).backward()  # type: ignore[union-attr]
    expected = torch.cat([parameter.detach().flatten() * 2 for parameter in bag.parameters()]).norm()
    torch.testing.assert_close(optimizer.clip(), expected)
    torch.testing.assert_close(flat.grad.norm(), torch.tensor(0.5))
