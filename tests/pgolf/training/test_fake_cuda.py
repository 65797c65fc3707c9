"""The record at full size on fake CUDA tensors: every operation is checked for devices and types, none computes.

Needs the CUDA build of torch, which imports without a driver; `make test-gpu` installs it. The backward pass does not
run on fake CUDA tensors; it is run on `meta`.
"""

import dataclasses

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pgolf import config as configs
from pgolf.config import Config
from pgolf.model.gpt import GPT
from pgolf.optim.average import Averages
from pgolf.optim.flat import FlatParameters, parameter_groups
from pgolf.optim.optimizer import Optimizer

pytestmark = pytest.mark.gpu
needs_cuda_build = pytest.mark.skipif(
    torch.version.cuda is None,
    reason="not tested here: the record at full size on fake CUDA tensors (this torch is built without CUDA; "
    "make test-gpu installs one that is)",
)


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setattr(GPT, "_initialize", lambda self: None)
    config = configs.load("record", None, [])
    return dataclasses.replace(config, average=dataclasses.replace(config.average, ema_from=0.0))


def parts(config: Config, device: str) -> tuple[GPT, FlatParameters, Optimizer, Averages]:
    with torch.device(device):
        model = GPT(config.model).train()
    model.compute_dtype = torch.bfloat16
    flat = FlatParameters(model, parameter_groups(model, model.matrix_roles()))
    return model, flat, Optimizer(flat, config.optim), Averages(flat.data, config.average)


@needs_cuda_build
@pytest.mark.parametrize("looped", [False, True])
def test_a_step_of_the_record_stays_on_the_gpu(record: Config, looped: bool) -> None:
    with FakeTensorMode(allow_non_fake_inputs=False):
        model, flat, optimizer, averages = parts(record, "cuda")
        model.set_looped(looped)
        tokens = torch.zeros(48, 2048, dtype=torch.int64, device="cuda")
        with torch.no_grad():
            hidden = model.hidden(tokens)
            losses = model.hidden_losses(hidden.flatten(0, 1), tokens.flatten())
            loss = model.loss(tokens, tokens)
        assert (hidden.shape, hidden.dtype, hidden.device.type) == ((48, 2048, 512), torch.bfloat16, "cuda")
        assert (losses.shape, losses.dtype) == ((48 * 2048,), torch.float32)
        assert (loss.shape, loss.device.type) == ((), "cuda")
        norm = optimizer.clip()
        optimizer.step(10, 0.5)
        averages.update(0.5)
        state = optimizer.state() | averages.state() | {"weights": flat.data, "norm": norm}
        assert len(averages.finished()) == 3
        assert {tensor.device.type for tensor in state.values()} == {"cuda"}
        assert {tensor.dtype for tensor in state.values()} == {torch.float32}


@pytest.mark.parametrize("looped", [False, True])
def test_every_weight_of_the_record_gets_a_gradient_of_its_shape(record: Config, looped: bool) -> None:
    with torch.device("meta"):
        model = GPT(record.model).train()
        tokens = torch.zeros(48, 2048, dtype=torch.int64)
    model.compute_dtype = torch.bfloat16
    model.set_looped(looped)
    model.loss(tokens, tokens).backward()
    unused = {"softcap_shift"}  # moves at test time only
    for name, parameter in model.named_parameters():
        if name not in unused:
            assert parameter.grad is not None, name
            assert (parameter.grad.shape, parameter.grad.dtype) == (parameter.shape, torch.float32)
