"""Milliseconds of one optimizer step on tiny models: pgolf's flat buffers against tensor by tensor.

Run: python benchmarks/training/optimizer_step.py [--threads 2] [--cpu-time]. The plain version is written as
the published
scripts are, in fp32: Muon matrix by matrix, AdamW with one tensor per operation, one EMA update per tensor and decay.
Gradients are random; both do the same updates (tests/pgolf/optim/test_muon.py holds that). `--cpu-time` counts
processor time instead of the wall clock, for a machine that others use too.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from pgolf.config import AverageConfig, ModelConfig, OptimConfig
from pgolf.model.gpt import GPT
from pgolf.optim.average import Averages
from pgolf.optim.flat import FlatParameters, parameter_groups
from pgolf.optim.newton_schulz import coefficients
from pgolf.optim.optimizer import Optimizer

SHAPES = {
    "4 layers of 64, MLP 4x": ModelConfig(
        vocab_size=1024, dim=64, num_layers=4, num_heads=4, num_kv_heads=2, mlp_ratio=4.0
    ),
    "6 layers of 96, MLP 3x": ModelConfig(
        vocab_size=1024, dim=96, num_layers=6, num_heads=3, num_kv_heads=1, mlp_ratio=3.0
    ),
    "8 layers of 128, MLP 3x": ModelConfig(
        vocab_size=1024, dim=128, num_layers=8, num_heads=4, num_kv_heads=2, mlp_ratio=3.0
    ),
}
DECAYS = (0.99, 0.995, 0.998)


def plain_step(model: GPT, config: OptimConfig) -> Callable[[], None]:
    """A step tensor by tensor, as the published scripts write it."""
    groups = parameter_groups(model, model.matrix_roles())
    named = dict(model.named_parameters())
    matrices = {name: parameter for name, parameter in named.items() if groups[name] == "matrix"}
    momenta = {name: torch.zeros_like(parameter) for name, parameter in matrices.items()}
    rest = [[parameter for name, parameter in named.items() if groups[name] == group] for group in ("embed", "scalar")]
    adams = [
        torch.optim.AdamW(rest[0], config.embed_lr, config.embed_betas, weight_decay=0.0, foreach=False),
        torch.optim.AdamW(rest[1], config.scalar_lr, config.scalar_betas, weight_decay=0.0, foreach=False),
    ]
    averages = [{name: parameter.detach().clone() for name, parameter in named.items()} for _ in range(4)]
    rows = coefficients(config.newton_schulz, config.newton_schulz_steps)

    def orthogonal(x: Tensor) -> Tensor:
        tall = x.shape[0] > x.shape[1]
        x = x.T if tall else x
        x = x / (x.norm() + 1e-7)
        for a, b, c in rows:
            square = x @ x.T
            x = a * x + (b * square + c * square @ square) @ x
        return x.T if tall else x

    @torch.no_grad()
    def step() -> None:
        for name, parameter in matrices.items():
            assert parameter.grad is not None
            momentum = momenta[name].mul_(config.momentum).add_(parameter.grad)
            update = parameter.grad + config.momentum * momentum
            update = update / update.norm(dim=-1, keepdim=True).clamp(min=1e-7)
            update = orthogonal(update)
            parameter.mul_(1 - config.matrix_lr * config.matrix_decay)
            parameter.add_(update, alpha=-config.matrix_lr * max(1, parameter.shape[0] / parameter.shape[1]) ** 0.5)
        for adam in adams:
            adam.step()
        for average, decay in zip(averages, (*DECAYS, 0.5), strict=True):
            for name, parameter in named.items():
                average[name].mul_(decay).add_(parameter, alpha=1 - decay)

    for parameter in named.values():
        parameter.grad = torch.randn_like(parameter)
    return step


def flat_step(model: GPT, config: OptimConfig) -> Callable[[], None]:
    """pgolf's own step."""
    flat = FlatParameters(model, parameter_groups(model, model.matrix_roles()))
    flat.grad.normal_()
    optimizer = Optimizer(flat, config)
    averages = Averages(flat.data, AverageConfig(ema_decays=DECAYS, ema_from=0.0, tail_from=0.0))

    def step() -> None:
        optimizer.clip()
        optimizer.step(2000, 0.1)
        averages.update(0.1)

    return step


def milliseconds(steps: list[Callable[[], None]], clock: Callable[[], float], rounds: int = 30) -> list[float]:
    """Median of each, taken in turns so that a busy moment of the machine meets all alike."""
    taken: list[list[float]] = [[] for _ in steps]
    for _ in range(rounds):
        for times, step in zip(taken, steps, strict=True):
            started = clock()
            step()
            times.append(1e3 * (clock() - started))
    return [statistics.median(times[5:]) for times in taken]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    print("| model | parameters | plain fp32 | pgolf fp32 | pgolf bf16 | pgolf bf16, 4 steps |")
    print("|---|---|---|---|---|---|")
    for name, shape in SHAPES.items():
        common = {"matrix_decay": 0.01, "embed_decay": 0.0}
        steps = [
            plain_step(GPT(shape), OptimConfig(**common)),
            flat_step(GPT(shape), OptimConfig(**common, newton_schulz_dtype="float32")),
            flat_step(GPT(shape), OptimConfig(**common, newton_schulz_dtype="bfloat16")),
            flat_step(GPT(shape), OptimConfig(**common, newton_schulz_dtype="bfloat16", newton_schulz_steps=4)),
        ]
        size = sum(parameter.numel() for parameter in GPT(shape).parameters())
        print(f"| {name} | {size:,} | " + " | ".join(f"{value:.2f}" for value in milliseconds(steps, clock)) + " |")


if __name__ == "__main__":
    main()
