"""Control tensors on grids of their own: a value costs what a weight does, and the container gives them back."""

import numpy as np
import pytest
import torch

from pgolf import config as configs
from pgolf.codec import container
from pgolf.model.gpt import GPT
from pgolf.progress import Silent
from pgolf.quant import controls, pipeline
from pgolf.quant.calibrated_model import CalibratedModel
from pgolf.quant.divergence import Divergence
from pgolf.quantized.tensors import dequantize
from pgolf.runtime import Runtime
from pgolf.tokens.shards import TokenStream, write_shards

RUNTIME = Runtime(torch.device("cpu"), torch.float32, 0, 1, 1, compile=False)
SETTINGS = ["model.vocab_size=64", "model.dim=32", "model.num_layers=1", "model.canon_taps=2", "model.num_heads=2",
            "model.num_kv_heads=2", "quantize.calibration_tokens=2048", "quantize.sensitivity_tokens=512",
            "quantize.round_controls=true"]  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> CalibratedModel:
    config = configs.load(None, None, SETTINGS)
    torch.manual_seed(0)
    model = GPT(config.model).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, "train", [np.random.default_rng(0).integers(2, 64, 8000).astype(np.uint16)], 8000)
    stream = TokenStream.open(sorted(folder.glob("*.bin")))
    return pipeline.calibrate(model, config, stream, 32, RUNTIME, Silent())


def test_a_rounded_value_costs_as_much_divergence_as_a_weight(source: CalibratedModel) -> None:
    matrices = dict(pipeline.finish(source, 0).model.matrices)
    matrices = {name: tensor for name, tensor in matrices.items() if name in source.roles}
    distance = Divergence(source.model, source.batches(2048, choosing=True))
    steps = controls.choose_steps(distance, source.weights, matrices)
    assert set(steps) == {name for name, tensor in source.controls.items() if tensor.numel() >= controls.LEAST}
    coded, left = controls.split(source.controls, steps)
    assert set(coded) | set(left) == set(source.controls)
    weights = sum(tensor.symbols.size for tensor in matrices.values())
    each = distance.of({name: dequantize(tensor) for name, tensor in matrices.items()}) / weights
    for name, tensor in coded.items():
        shape = source.weights[name].shape
        cost = distance.of({name: dequantize(tensor).view(shape)}) / tensor.symbols.size
        assert 0.3 * each < cost < 3 * each, name


@pytest.mark.parametrize("steps", [0, 2])
def test_the_container_gives_back_a_model_in_fewer_bytes(source: CalibratedModel, steps: int) -> None:
    change = [f"quantize.distill_steps={steps}", "quantize.round_controls=false"]
    plain = pipeline.finish(_with(source, change), 0).model
    coded = pipeline.finish(_with(source, change[:1]), 0).model
    data = container.encode(coded)
    weights = container.decode(data).state_dict()
    source_of = {name: tensor.shape for name, tensor in source.weights.items()}
    assert {name: tensor.shape for name, tensor in weights.items()} == source_of
    GPT(source.config.model).load_state_dict(weights)
    assert coded.matrices["blocks.0.attn_scale"].shape == (1, 32)
    if not steps:
        for name in set(coded.matrices) - set(plain.matrices):
            error = (weights[name] - source.weights[name]).abs().max()
            assert 0 < error <= 0.51 * 2.0 ** (int(coded.matrices[name].row_scale[0]) / 4), name
    values = sum(coded.matrices[name].symbols.size for name in set(coded.matrices) - set(plain.matrices))
    saved = len(container.encode(plain)) - len(data)
    assert saved > 0.5 * values


def _with(source: CalibratedModel, changes: list[str]) -> CalibratedModel:
    config = configs.load(None, None, changes, base=source.config)
    made = (source.calibration, source.calibration_tokens)
    return pipeline.calibrate(source.model, config, source.stream, source.length, RUNTIME, Silent(), made)
