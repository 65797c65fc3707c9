"""Attention in C with its heads' norms, rotation, own values and gate, against the module in torch and float64."""

import dataclasses
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from pgolf.config.model import ModelConfig
from pgolf.model import attention_mask
from pgolf.model.attention import Attention
from pgolf.model.forward_context import Step
from pgolf.model.gpt import GPT
from pgolf.model.kernels import heads
from pgolf.model.paths import HEADS, IN_C, TILED, use_paths
from pgolf.model.rotary import rotary_tables
from pgolf.runtime import Runtime

BASE = ModelConfig(vocab_size=64, dim=32, num_layers=4, num_heads=4, num_kv_heads=2)
CASES: dict[str, dict[str, Any]] = {
    "bare": {},
    "own value": {"xsa_from": 0},
    "partial rotary and gate": {"rope_dims": 4, "head_gate": "sparse", "head_gate_factor": 0.5},
    "all": {"xsa_from": 0, "head_gate": "dense", "document_attention": True, "layer_windows": (9, 9, 9, 9)},
    "wide heads": {"dim": 80, "num_heads": 2, "xsa_from": 0, "head_gate": "sparse"},
    "one key head": {"dim": 48, "num_heads": 2, "num_kv_heads": 1, "xsa_from": 0, "head_gate": "sparse"},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("length", [1, 5, 70])
@pytest.mark.parametrize("threads", [1, 2])
def test_values_and_gradients(case: str, length: int, threads: int, kernels: Runtime) -> None:
    config = dataclasses.replace(BASE, **CASES[case])
    torch.manual_seed(0)
    module = Attention(config, 1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
        module.q_gain.add_(1.5)
    h, grad = torch.randn(2, 2, length, config.dim)
    scale, tokens = torch.rand(config.dim), torch.randint(0, 9, (2, length))
    starts = attention_mask.document_starts(tokens, 1) if config.document_attention else None
    view = attention_mask.view(starts, max(config.layer_windows, default=0), tokens, native=True)
    tables = rotary_tables(length, config.rope_dims or module.head_dim, config.rope_base, h.device)
    before, results = torch.get_num_threads(), []
    torch.set_num_threads(threads)
    try:
        for dtype in (torch.float64, torch.float32):
            made, x = module.to(dtype), h.to(dtype).requires_grad_()
            made.native = made.fused = dtype == torch.float32
            step = Step(x, *(table.to(dtype) for table in tables), None)
            y = made(x, step, view, None, 0, scale.to(dtype))
            results.append([y, *torch.autograd.grad(y, (x, *made.parameters()), grad.to(dtype))])
    finally:
        torch.set_num_threads(before)
    for right, mine in zip(*results, strict=True):
        largest = max(1.0, float(right.detach().abs().max()))
        torch.testing.assert_close(mine.double(), right, rtol=0, atol=1e-5 * largest)


def test_the_number_of_threads_changes_no_bit_and_a_gain_of_zero_still_learns(kernels: Runtime) -> None:
    torch.manual_seed(0)
    rows, grad = torch.randn(3, 40, 4 * 8 + 2 * 2 * 8 + 4), torch.randn(3, 40, 4, 8)
    gain, tables = torch.tensor([1.0, 0.0, -2.0, 3.0]), rotary_tables(40, 8, 1e4, rows.device)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            made = heads.heads(rows, *tables, gain, None, 8, True, 0.5)
            results.append([*made, *heads.heads_backward(grad, rows, *tables, gain, None, *made, 0.5)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))
    assert results[0][-1][1] != 0.0


@pytest.mark.parametrize("changes", [{"value_x0": True}, {"rope_dims": 4, "key_offset": True}, {"xsa_from": 1}])
def test_a_model_trains_the_same_also_where_the_kernel_does_not_fit(changes: dict[str, Any], kernels: Runtime) -> None:
    torch.manual_seed(0)
    model, tokens = GPT(dataclasses.replace(BASE, **changes)).train(), torch.randint(64, (2, 41))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    results = []
    for names in ((), (IN_C[0], HEADS)):
        use_paths(model, names)
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        results.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for right, mine in zip(*results, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-5)
    tiles = IN_C[0], HEADS, "bfloat16 in C"
    for fused, names in enumerate(((HEADS,), (IN_C[0], HEADS, "bfloat16 products"), (*tiles, TILED), tiles)):
        use_paths(model, names)
        assert {module.fused for module in model.modules() if isinstance(module, Attention)} == {fused == 3}


@pytest.mark.parametrize("level", ["default", "avx2"])
def test_other_vector_widths(level: str, kernels: Runtime) -> None:
    """The same values and gradients, of this kernel and of the MLP, in a process held to narrower vectors."""
    if level == torch.backends.cpu.get_cpu_capability().lower():
        pytest.skip("not tested here: it is this process's own width")
    tests = [__file__.replace("heads", name) + "::test_values_and_gradients" for name in ("heads", "mlp")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *tests],
        env=os.environ | {"ATEN_CPU_CAPABILITY": level},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]
