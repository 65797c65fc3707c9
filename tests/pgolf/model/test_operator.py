"""Kernels as autograd.Function and, under torch.compile, as operators with the shapes of `kernels.shapes`."""

import dataclasses

import pytest
import torch
from torch import Tensor

import pgolf.model.kernels.shapes  # noqa: F401 - registers them
from pgolf import config as configs
from pgolf.model.gpt import GPT
from pgolf.model.kernels.operator import Operator
from pgolf.model.paths import HEADS, IN_C, LOADERS, MLPS, NORMS, use_paths
from pgolf.runtime import Runtime

PATHS = (*IN_C, NORMS, MLPS, HEADS)


@pytest.mark.parametrize("changes", [{}, {"skips": True}, {"canon_taps": 2, "xsa_from": 0, "head_gate": "sparse"}])
def test_both_ways_of_a_call_have_the_same_loss_and_gradients(
    changes: dict[str, object], kernels: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`aot_eager` traces as inductor does, backward pass included, and compiles nothing."""
    torch.manual_seed(0)
    shape = {"vocab_size": 64, "dim": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1}
    config = dataclasses.replace(configs.load("demo").model, **shape, **changes)
    model, tokens = GPT(config).train(), torch.randint(64, (2, 81))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    for name in PATHS:
        LOADERS[name](model, None)
    use_paths(model, PATHS)
    direct: list[str] = []
    original = Operator.__call__

    def call(self: Operator, *given: object) -> object:
        if not torch.compiler.is_compiling():
            direct.append(self._forward.__name__)
        return original(self, *given)

    def gradients() -> list[Tensor]:
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        return [loss, *torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, materialize_grads=True)]

    monkeypatch.setattr(Operator, "__call__", call)
    eager = gradients()
    assert {"heads", "heads_backward", "mlp", "enter", "norm"} <= set(direct)
    monkeypatch.undo()
    for block in model.blocks:
        block.compile(backend="aot_eager", dynamic=False, fullgraph=True)
    compiled = gradients()
    for mine, right in zip(compiled, eager, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-5, atol=1e-6)
