"""The quantization recipe: one table of methods, float32 on every device, one BLAS thread in each worker."""

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from pgolf import config as configs
from pgolf.codec import container
from pgolf.config import Config
from pgolf.config.quantize import QuantizeConfig
from pgolf.errors import PgolfError
from pgolf.model.gpt import GPT
from pgolf.progress import Silent
from pgolf.quant import hessian, methods, pipeline, rtn
from pgolf.quant.allocate import in_parallel
from pgolf.quant.divergence import Divergence
from pgolf.quant.single_matrix import Matrix, each_matrix
from pgolf.quantized.tensors import QuantizedModel, QuantizedTensor
from pgolf.runtime import Runtime
from pgolf.tokens.shards import TokenStream, write_shards

RUNTIME = Runtime(torch.device("cpu"), torch.bfloat16, 0, 1, 1, compile=False)  # activations as on a GPU
SETTINGS = ["model.vocab_size=64", "model.dim=32", "model.num_layers=2", "quantize.calibration_tokens=512"]
MATRIX = "blocks.0.mlp.fc.weight"


@pytest.fixture
def config() -> Config:
    return configs.load(None, None, SETTINGS)


@pytest.fixture
def model(config: Config) -> GPT:
    torch.manual_seed(0)
    model = GPT(config.model).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.compute_dtype = RUNTIME.dtype
    return model


@pytest.fixture
def stream(tmp_path: Path) -> TokenStream:
    write_shards(tmp_path, "train", [np.random.default_rng(0).integers(2, 64, 4000).astype(np.uint16)], 4000)
    return TokenStream.open(sorted(tmp_path.glob("*.bin")))


def test_divergence_of_a_tiny_change_is_not_drowned_in_bfloat16(model: GPT) -> None:
    tokens = [torch.from_numpy(np.random.default_rng(1).integers(2, 64, (8, 32)))]
    changed = {MATRIX: model.state_dict()[MATRIX] * (1 + 1e-6)}
    assert Divergence(model, tokens).of(changed) < 1e-8
    assert model.compute_dtype == torch.bfloat16


def test_every_result_is_that_of_a_float32_model(model: GPT, config: Config, stream: TokenStream) -> None:
    """The Hessians, and the integers after a byte target and training in between."""
    exact = copy.deepcopy(model)
    exact.compute_dtype = torch.float32
    batches = [torch.from_numpy(stream.rows(np.arange(4) * 32, 32).astype(np.int64))]
    rough, fine = (hessian.calibrate(each, batches)[MATRIX].curvature for each in (model, exact))
    assert np.array_equal(rough, fine)
    changes = ["quantize.target_bytes=9000", "quantize.distill_steps=4", "quantize.sensitivity_tokens=256"]
    config = configs.load(None, None, changes, base=config)
    results = [pipeline.quantize(each, config, stream, 32, RUNTIME, Silent(), 9000) for each in (model, exact)]
    assert same(results[0].model, results[1].model)
    assert {share.name for share in results[0].allocation} == set(model.matrix_roles())


def same(left: QuantizedModel, right: QuantizedModel) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left.state_dict().values(), right.state_dict().values(), strict=True))


def test_one_calibration_serves_several_targets(model: GPT, config: Config, stream: TokenStream) -> None:
    """A target after another one gives what a call for it alone gives."""
    config = configs.load(None, None, ["quantize.sensitivity_tokens=64", "quantize.distill_steps=2"], base=config)
    source = pipeline.calibrate(model, config, stream, 32, RUNTIME, Silent())
    pipeline.finish(source, 7000)
    alone = pipeline.quantize(model, config, stream, 32, RUNTIME, Silent(), 9000)
    assert same(pipeline.finish(source, 9000).model, alone.model)


@pytest.mark.parametrize(("seconds", "made"), [(1e-9, 1), (1e9, 6)])
def test_distillation_takes_the_steps_that_fit(
    model: GPT, config: Config, stream: TokenStream, seconds: float, made: int
) -> None:
    """No time is left: one step; time enough: all. The result is that of so many steps without a clock."""
    base = ["quantize.sensitivity_tokens=64", "quantize.target_bytes=9000"]
    timed = configs.load(None, None, [*base, "quantize.distill_steps=6", f"quantize.seconds={seconds}"], base=config)
    counted = configs.load(None, None, [*base, f"quantize.distill_steps={made}"], base=config)
    results = [pipeline.quantize(model, each, stream, 32, RUNTIME, Silent(), 9000) for each in (timed, counted)]
    assert [result.distill_steps for result in results] == [made, made]
    assert same(results[0].model, results[1].model)


@pytest.mark.parametrize("steps", [0, 4])
def test_choices_of_the_coder_are_of_the_model_that_landed(
    model: GPT, config: Config, stream: TokenStream, steps: int
) -> None:
    """Coding the model again need not try what landing on the target has tried."""
    changes = ["quantize.sensitivity_tokens=64", f"quantize.distill_steps={steps}"]
    config = configs.load(None, None, changes, base=config)
    found = pipeline.quantize(model, config, stream, 32, RUNTIME, Silent(), 12_000)
    assert found.choices == container.choose(found.model)
    assert 0.999 * 12_000 <= len(container.encode(found.model, choices=found.choices)) <= 12_000
    assert pipeline.quantize(model, config, stream, 32, RUNTIME, Silent()).choices is None


def test_a_new_method_is_a_function_and_a_row(
    model: GPT, config: Config, stream: TokenStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    def halved(matrix: Matrix) -> QuantizedTensor:
        assert matrix.calibration is not None
        return rtn.quantize(matrix.weight / 2, matrix.role, int(matrix.bits), None)

    row = methods.Method(each_matrix(halved), {"": 7.0, "embed": 9.0}, needs_hessians=True)
    monkeypatch.setitem(methods.METHODS, "halved", row)
    config = configs.load(None, None, ["quantize.method=halved"], base=config)
    found = pipeline.quantize(model, config, stream, 32, RUNTIME, Silent())
    assert torch.allclose(found.model.state_dict()[MATRIX], model.state_dict()[MATRIX] / 2, atol=0.01)
    assert int(np.abs(found.model.matrices["tok_emb.weight"].symbols).max()) == 255  # nine bits
    assert found.source.calibration_tokens == 512


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (QuantizeConfig(method="gptqq"), r"'gptqq'; choose rtn, sdclip, gptq, waterfill, trellis"),
        (QuantizeConfig(method="gptq", bits={"mlp": 4.5}), "gptq needs a whole number"),
        (QuantizeConfig(method="rtn", target_bytes=9000), "target_bytes .* only waterfill and trellis"),
        (QuantizeConfig(method="sdclip", distill_steps=5), "distill_steps .* only waterfill and trellis"),
    ],
)
def test_settings_that_a_method_cannot_follow_are_refused(settings: QuantizeConfig, says: str) -> None:
    with pytest.raises(PgolfError, match=says):
        methods.of(settings)
    assert methods.of(dataclasses.replace(settings, method="trellis")).chooses_steps


def test_workers_hold_blas_to_one_thread() -> None:
    def blas_threads(number: int) -> int:
        np.ones((2, 2)) @ np.ones((2, 2))
        return max(
            [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"], default=1
        )

    before = blas_threads(0)
    assert in_parallel(blas_threads, range(3), threads=2) == [1, 1, 1]
    assert blas_threads(0) == before
