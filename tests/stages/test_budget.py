"""The budget of a checkpoint, a quantized stage, a container and a package; it reads only and knows the cap."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pgolf import config as configs
from pgolf.codec import container
from pgolf.errors import PgolfError
from pgolf.model.gpt import GPT
from pgolf.progress import Silent
from pgolf.quantized import storage
from pgolf.quantized.tensors import QuantizedModel, QuantizedTensor
from pgolf.runtime import Runtime
from pgolf.store.stage_directory import Stage
from stages.context import StageContext
from stages.reports import budget, budget_picture

SETTINGS = ["model.vocab_size=64", "model.dim=16", "model.num_layers=2", "package.cap_bytes=20000"]


@pytest.fixture
def context(tmp_path: Path) -> StageContext:
    runtime = Runtime(torch.device("cpu"), torch.float32, 0, 1, 1, compile=False)
    return StageContext(tmp_path / "run", configs.load(None, None, SETTINGS), runtime, Silent(), ("test",))


@pytest.fixture
def trained(context: StageContext) -> Stage:
    with context.build("train", inputs={}, sections=("model",)) as build:
        save_file(GPT(context.config.model).state_dict(), build.writer.path("model.safetensors"))
    return build.stage


@pytest.fixture
def quantized(context: StageContext, trained: Stage) -> Stage:
    model = GPT(context.config.model)
    random = np.random.default_rng(0)
    state = model.state_dict()
    matrices = {
        name: QuantizedTensor(
            role,
            np.rint(random.normal(0, 3, tuple(state[name].shape))).astype(np.int32),
            np.full(state[name].shape[0], -20, np.int16),
            np.zeros(state[name].shape[1], np.int16),
        )
        for name, role in model.matrix_roles().items()
    }
    controls = {name: tensor.half() for name, tensor in state.items() if name not in matrices}
    with context.build("quantize", inputs={"model": trained}, sections=("quantize",)) as build:
        storage.save(build.writer.path("quantized.safetensors"), QuantizedModel(matrices, controls, {}))
        build.details["tensors"] = [
            {"name": name, "role": t.role, "weights": t.symbols.size, "bits": 3.0, "relative_error": 0.1}
            for name, t in matrices.items()
        ]
    return build.stage


def files_of(context: StageContext) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in context.run.rglob("*") if path.is_file()}


def test_a_checkpoint_counts_its_float32_bytes(context: StageContext, trained: Stage) -> None:
    found = budget.of_stage(context, trained)
    parameters = sum(tensor.numel() for tensor in GPT(context.config.model).state_dict().values())
    assert sum(line.weights for line in found.roles) == parameters
    assert sum(line.bytes for line in found.roles) == 4 * parameters
    assert found.model_bytes == (trained.path / "model.safetensors").stat().st_size
    assert found.over == found.model_bytes - 20_000 > 0


def test_a_quantized_stage_counts_what_it_would_be_packed_to(
    context: StageContext, quantized: Stage, tmp_path: Path
) -> None:
    before = files_of(context)
    found = budget.of_stage(context, quantized)
    data = container.encode(storage.load(quantized.file("quantized.safetensors")))
    assert found.total_bytes == len(data)
    assert {line.role for line in found.roles} >= {"attn", "mlp", "embed"}
    assert found.over < 0
    (tmp_path / "model.pgz").write_bytes(data)
    assert budget.of_file(tmp_path / "model.pgz", 100).over == len(data) - 100
    budget_picture.draw(found, tmp_path / "budget.png")
    assert (tmp_path / "budget.png").read_bytes().startswith(b"\x89PNG")
    assert files_of(context) == before


def test_a_package_counts_the_files_that_count(context: StageContext, quantized: Stage) -> None:
    data = container.encode(storage.load(quantized.file("quantized.safetensors")))
    rows = [("model.pgz", len(data), True), ("train_gpt.py", 700, True), ("tokenizer.model", 5000, False)]
    with context.build("package", inputs={"model": quantized}, sections=("package",)) as build:
        build.writer.path("model.pgz").write_bytes(data)
        build.writer.path("train_gpt.py").write_bytes(b"#" * 700)
        build.details["ledger"] = {"files": [{"file": f, "bytes": b, "counted": c} for f, b, c in rows]}
    found = budget.of_stage(context, build.stage)
    assert found.total_bytes == len(data) + 700
    (build.stage.path / "train_gpt.py").write_bytes(b"#" * 900)
    with pytest.raises(PgolfError, match=r"train_gpt\.py"):
        budget.of_stage(context, build.stage)
    (build.stage.path / "train_gpt.py").write_bytes(b"#" * 700)
    assert len(found.tensors) == len(list(storage.load(quantized.file("quantized.safetensors")).matrices))


def test_the_remedy_names_the_cap_or_what_alone_is_over_it() -> None:
    """A byte target counts what the cap counts: the cap is the target, and the script is not taken off twice."""
    script = {"train_gpt.py": 37_418}
    assert budget.remedy(40_000, script) == "pgolf quantize --target-bytes 40000"
    assert budget.remedy(20_000, {}) == "pgolf quantize --target-bytes 20000"
    assert budget.remedy(37_418, script) == "impossible under this cap: train_gpt.py alone has 37,418 bytes"
