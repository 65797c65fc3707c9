"""Training as a stage: resumed after a kill to the same bits, stopped in good order, averaged by held-out loss."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pgolf import config as configs
from pgolf.errors import PgolfError
from pgolf.model.gpt import GPT
from pgolf.progress import Silent
from pgolf.quant import hessian
from pgolf.runtime import Runtime
from pgolf.saved.models import load_quantized
from pgolf.store import stage_directory
from pgolf.store.stage_directory import Stage
from pgolf.tokens.shards import write_shards
from pgolf.training import checkpoint as checkpoints
from stages.context import StageContext
from stages.ema_finalize import ema_finalize
from stages.quantize import quantize
from stages.train import train

SETTINGS = [
    "model.vocab_size=64",
    "model.dim=16",
    "model.num_layers=2",
    "model.loop_passes=2",
    "model.loop_from=0.5",
    "model.num_heads=2",
    "model.num_kv_heads=1",
    "train.iterations=12",
    "train.batch_tokens=128",
    "train.seq_len=16",
    "train.batch_schedule=[[0.7, 256]]",
    "train.checkpoint_every=4",
    "train.log_every=1",
    "train.holdout_tokens=600",
    "train.compile=false",
    "average.ema_decays=[0.5, 0.9]",
    "average.tail_from=0.6",
    "optim.neuron_beta=0.9",
    "optim.shared_lr=0.3",
    "optim.shared_spelling=false",
]
RUNTIME = Runtime(torch.device("cpu"), torch.float32, 0, 1, 1, compile=False)


def context_at(run: Path, *assignments: str, force: bool = False, name: str | None = None) -> StageContext:
    config = configs.load(None, None, [*SETTINGS, *assignments])
    return StageContext(run, config, RUNTIME, Silent(), ("test",), name, force)


def make_tokens(run: Path) -> Stage:
    """Tokens with something to learn: each is mostly the one before plus 1."""
    random = np.random.default_rng(0)
    stream = np.cumsum(random.random(12_000) < 0.9).astype(np.uint16) % 60 + 3
    with context_at(run).build("tokenize", inputs={}, sections=("tokenizer",)) as build:
        for path in write_shards(build.writer.payload, "fineweb_train", [stream.astype(np.uint16)], 7000):
            build.writer.add(path)
        build.details["vocab_size"] = 64
    return build.stage


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """A run that nothing interrupted."""
    run = tmp_path_factory.mktemp("straight")
    return train(context_at(run), make_tokens(run))


@pytest.fixture
def unmeasured(straight: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once is enough: the machine's own rate is measured in the run that nothing interrupted."""
    monkeypatch.setattr("stages.train.matrix_rate", lambda device, dtype: 1e11)


def outputs(stage: Stage) -> dict[str, str]:
    """Hashes of all weights of a train stage."""
    files = stage.manifest.outputs
    return {name: output.sha256 for name, output in files.items() if name.endswith(".safetensors")}


@contextmanager
def signal_at(step: int, number: int) -> Iterator[None]:
    """Send this process a signal in the forward pass of the optimizer step `step` (from 0, without the warm-up).

    The checkpoint before is on the disk by then: it is written in a thread, and a test must not depend on how fast.
    """
    original, begin = GPT.set_progress, checkpoints.Writer.save
    calls = 0

    def save(self: checkpoints.Writer, *state: Any) -> None:
        begin(self, *state)
        self.wait()

    def set_progress(self: GPT, fraction: float) -> None:
        nonlocal calls
        if calls == step + 3:  # the warm-up runs a step of each kind: before the loop, in it, with larger batches
            os.kill(os.getpid(), number)
        calls += 1
        original(self, fraction)

    GPT.set_progress, checkpoints.Writer.save = set_progress, save  # type: ignore[method-assign]
    try:
        yield
    finally:
        GPT.set_progress, checkpoints.Writer.save = original, begin  # type: ignore[method-assign]


def test_a_run_learns_and_records_what_it_did(straight: Stage) -> None:
    metrics = straight.manifest.metrics
    lines = [json.loads(text) for text in straight.file("metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == list(range(1, 13))
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[0]["learning_rate"] == 0.026  # the plateau
    assert 0 < lines[-1]["learning_rate"] < 0.2 * 0.026 * 2**0.5  # batches twice as large, near the warmdown's end
    assert straight.manifest.details["passes"] == pytest.approx(metrics["tokens"] / (12_000 - 600), abs=1e-3)
    assert metrics["iterations"] == 12
    assert metrics["tokens"] == lines[-1]["tokens"] == 9 * 128 + 3 * 256  # 0.7 is reached after 9 of 12
    assert metrics["tokens_per_second"] > 0
    assert 0 < metrics["flops_utilization"] < 1
    assert metrics["holdout_nats_per_token"] < 4.2  # ln 64 = 4.16 before training
    assert metrics["parameters"] == sum(
        value.numel() for value in load_file(straight.file("model.safetensors")).values()
    )
    assert set(outputs(straight)) == {
        "model.safetensors",
        "average-ema-0.5.safetensors",
        "average-ema-0.9.safetensors",
        "average-tail.safetensors",
    }
    assert straight.file("loss.png").read_bytes().startswith(b"\x89PNG")
    assert not (straight.path / ".scratch").exists()


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("at", [2, 7])
def test_killed_and_continued_is_the_same_to_the_bit(tmp_path: Path, straight: Stage, at: int) -> None:
    """SIGKILL before the first checkpoint and between two, in a forked process: nothing of it is cleaned up."""
    tokens = make_tokens(tmp_path)
    child = os.fork()
    if child == 0:
        with signal_at(at, signal.SIGKILL):
            train(context_at(tmp_path), tokens)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert not (tmp_path / "train").exists()
    found = checkpoints.load(tmp_path / "train.partial" / ".scratch")
    assert (None if found is None else found.values["iteration"]) == (None if at < 4 else 4)
    finished = train(context_at(tmp_path), tokens)
    assert outputs(finished) == outputs(straight)
    assert finished.manifest.details["restarts"] == (0 if at < 4 else 1)
    lines = [json.loads(text) for text in finished.file("metrics.jsonl").read_text().splitlines()]
    straight_lines = [json.loads(text) for text in straight.file("metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == [line["loss"] for line in straight_lines]


@pytest.mark.usefixtures("unmeasured")
def test_interrupt_finishes_the_step_and_continues(tmp_path: Path, straight: Stage) -> None:
    tokens = make_tokens(tmp_path)
    with signal_at(5, signal.SIGINT), pytest.raises(KeyboardInterrupt):
        train(context_at(tmp_path), tokens)
    found = checkpoints.load(tmp_path / "train.partial" / ".scratch")
    assert found is not None
    assert found.values["iteration"] == 6
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    with pytest.raises(PgolfError, match=r"optim\.matrix_lr: 0\.026 there, 0\.5 now"):
        train(context_at(tmp_path, "optim.matrix_lr=0.5"), tokens)
    assert checkpoints.load(tmp_path / "train.partial" / ".scratch") is not None

    # How often checkpoints are written changes no weight.
    assert outputs(train(context_at(tmp_path, "train.checkpoint_every=100"), tokens)) == outputs(straight)


@pytest.mark.usefixtures("unmeasured")
def test_force_starts_over(tmp_path: Path) -> None:
    tokens = make_tokens(tmp_path)
    with signal_at(5, signal.SIGINT), pytest.raises(KeyboardInterrupt):
        train(context_at(tmp_path), tokens)
    finished = train(context_at(tmp_path, "train.iterations=2", force=True), tokens)
    assert finished.manifest.metrics["iterations"] == 2
    assert finished.manifest.details["restarts"] == 0


@pytest.mark.usefixtures("unmeasured")
def test_the_clock_ends_a_run_and_adds_up_over_restarts(tmp_path: Path) -> None:
    tokens = make_tokens(tmp_path)
    settings = ("train.iterations=1000000", "train.seconds=0.6", "train.batch_schedule=[]")
    with signal_at(3, signal.SIGINT), pytest.raises(KeyboardInterrupt):
        train(context_at(tmp_path, *settings), tokens)
    path = tmp_path / "train.partial" / ".scratch"
    found = checkpoints.load(path)
    assert found is not None
    checkpoints.save(path, found.tensors, {**found.values, "elapsed": 0.4})
    before = time.perf_counter()
    finished = train(context_at(tmp_path, *settings), tokens)
    assert 0.4 < finished.manifest.metrics["seconds"] < 0.4 + time.perf_counter() - before
    assert finished.manifest.metrics["seconds"] < 0.6 + 5  # a step that has begun is finished, on a busy machine late


@pytest.mark.parametrize("micro_tokens", [0, 32])
def test_a_loss_that_is_not_finite_names_step_and_tensor(tmp_path: Path, micro_tokens: int) -> None:
    tokens = make_tokens(tmp_path)
    settings = ("optim.scalar_lr=1e38", "optim.warmdown=0.0", f"train.micro_tokens={micro_tokens}")
    with pytest.raises(PgolfError, match=r"not finite at step \d+; it began in the (output of|weight|loss)") as caught:
        train(context_at(tmp_path, *settings), tokens)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "train").exists()


@pytest.mark.usefixtures("unmeasured")
def test_a_stopped_run_is_finished_as_it_is_or_lengthened(tmp_path: Path) -> None:
    tokens = make_tokens(tmp_path)
    with pytest.raises(PgolfError, match="no checkpoint of a stopped run"):
        train(context_at(tmp_path), tokens, finish=True)
    for name in ("a", "b"):
        with signal_at(5, signal.SIGINT), pytest.raises(KeyboardInterrupt):
            train(context_at(tmp_path, name=name), tokens)
    with pytest.raises(PgolfError, match=r"train\.iterations: 12 there, 7 now\); .*--finish"):
        train(context_at(tmp_path, "train.iterations=7", name="a"), tokens)
    finished = train(context_at(tmp_path, name="a"), tokens, finish=True)
    assert finished.manifest.metrics["iterations"] == 6
    assert finished.manifest.metrics["tokens"] == 6 * 128
    assert "holdout_nats_per_token" in finished.manifest.metrics
    assert len(finished.file("metrics.jsonl").read_text().splitlines()) == 6
    longer = train(context_at(tmp_path, "train.iterations=15", name="b"), tokens)
    assert longer.manifest.metrics["iterations"] == 15


@pytest.mark.usefixtures("unmeasured")
def test_what_reads_train_tokens_is_made_inside_the_clock(
    tmp_path: Path, straight: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a reserve, `ema-finalize` and `quantize` use what training chose and measured: what they would have made."""
    settings = ("quantize.method=trellis", "quantize.calibration_tokens=1024", "quantize.sensitivity_tokens=0")
    reserving = (*settings, "train.reserve_seconds=60", "train.seconds=1000", "train.checkpoint_every=5")
    trained = train(context_at(tmp_path, *reserving), make_tokens(tmp_path))
    assert trained.manifest.metrics["seconds"] < 1000
    assert trained.manifest.details["hessians"]["tokens"] == 1024
    finished, plain = (
        ema_finalize(context_at(stage.path.parent, *chosen), stage)
        for stage, chosen in ((trained, reserving), (straight, settings))
    )
    assert finished.manifest.details["chosen_inside_the_training_clock"] is True
    assert plain.manifest.details["chosen_inside_the_training_clock"] is False
    for key in ("chosen", "candidates"):
        assert finished.manifest.details[key] == plain.manifest.details[key]
    assert outputs(finished) == outputs(plain)

    expected = quantize(context_at(tmp_path, *settings, name="outside"), plain)
    other = quantize(context_at(tmp_path, *reserving, "quantize.calibration_tokens=512", name="other"), finished)
    assert other.manifest.details["calibration_tokens"] == 512  # those of other settings are of no use
    monkeypatch.setattr(hessian, "calibrate", None)  # from here on nothing calibrates
    made = quantize(context_at(tmp_path, *reserving), finished)
    assert made.manifest.details["calibration_tokens"] == 1024
    theirs, ours = (load_quantized(stage).matrices for stage in (expected, made))
    differing = sum(int((theirs[name].symbols != ours[name].symbols).sum()) for name in theirs)
    assert differing <= 2  # the Hessians are kept in float32


def test_a_reserve_that_is_too_short_is_refused(tmp_path: Path) -> None:
    settings = ("train.reserve_seconds=1e-6", "train.seconds=1000")
    with pytest.raises(PgolfError, match=r"train\.reserve_seconds = 1e-06 is too short: scoring .* takes"):
        train(context_at(tmp_path, *settings), make_tokens(tmp_path))


def test_bad_input_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as if it were not installed
    tokens = make_tokens(tmp_path)
    for assignment, message in (
        ("train.seq_len=20000", "longer than the train shards"),
        ("train.batch_tokens=100", "not a multiple of train.seq_len"),
        ("train.tensorboard=true", "needs the package tensorboard"),
        ("model.vocab_size=32", "smaller than the tokenizer's 64 pieces"),
        ("model.vocab_size=80", "has 64 pieces: 16 rows of the embedding would never be used"),
    ):
        with pytest.raises(PgolfError, match=message):
            train(context_at(tmp_path, assignment), tokens)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "tokenize"]


def test_ema_finalize_takes_the_best_on_held_out_train_tokens(straight: Stage) -> None:
    context = context_at(straight.path.parent)
    finished = ema_finalize(context, straight)
    table = {row["name"]: row["holdout_nats_per_token"] for row in finished.manifest.details["candidates"]}
    assert set(table) >= {"last", "ema-0.5", "ema-0.9", "tail"}
    assert len(table) == 5  # and a blend of the last weights with the best average
    chosen = finished.manifest.details["chosen"]
    assert table[chosen] == min(table.values()) == finished.manifest.metrics["holdout_nats_per_token"]
    assert table["last"] == pytest.approx(straight.manifest.metrics["holdout_nats_per_token"])
    weights = load_file(finished.file("model.safetensors"))
    if chosen in ("ema-0.5", "ema-0.9", "tail"):
        expected = load_file(straight.file(f"average-{chosen}.safetensors"))
        assert all(torch.equal(weights[name], expected[name]) for name in weights)


def test_ema_finalize_refuses_other_stages(straight: Stage) -> None:
    tokens = straight.parent("tokens")
    with pytest.raises(PgolfError, match="ema-finalize needs train"):
        ema_finalize(context_at(straight.path.parent), tokens)


def test_two_processes_give_the_losses_of_one(tmp_path: Path, straight: Stage) -> None:
    """`pgolf train --nproc 2`: torchrun with gloo."""
    make_tokens(tmp_path / "run")
    assignments = [item for setting in SETTINGS for item in ("--set", setting)]
    command = [sys.executable, "-m", "cli", "train", "--nproc", "2", "--artifacts", str(tmp_path), "--run", "run"]
    done = subprocess.run(
        [*command, "--device", "cpu", "--threads", "1", "--json", *assignments],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert json.loads(done.stdout)["environment"]["world_size"] == 2
    finished = stage_directory.open_stage(tmp_path / "run" / "train")
    for name in ("loss", "grad_norm"):
        mine, theirs = (
            [json.loads(text)[name] for text in stage.file("metrics.jsonl").read_text().splitlines()]
            for stage in (finished, straight)
        )
        assert mine == pytest.approx(theirs, rel=1e-4)
