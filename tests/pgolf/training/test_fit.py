"""The training loop itself: what a failed compilation leaves, bfloat16, graphs, and errors of the machine."""

import dataclasses
from collections.abc import Iterator
from contextlib import nullcontext

import gloo_rank
import pytest
import torch
from torch._dynamo.testing import CompileCounter

from pgolf import config as configs
from pgolf import runtime as runtimes
from pgolf.errors import PgolfError
from pgolf.model import paths
from pgolf.model.gpt import GPT, Parts
from pgolf.progress import Silent
from pgolf.runtime import Runtime
from pgolf.tokens import spelling
from pgolf.tokens.loader import Loader
from pgolf.training import fit as fits
from pgolf.training import prepare as preparation
from pgolf.training.display import Display
from pgolf.training.fit import At, Hooks
from pgolf.training.holdout import Holdout
from pgolf.training.likeness import likeness
from pgolf.training.prepare import _step_seconds as judge
from pgolf.training.prepare import naming_memory, prepare
from pgolf.training.trainer import Trainer

ALONE = Runtime(torch.device("cpu"), torch.float32, 0, 1, 1, compile=False)


class Told(Silent):
    """Keeps the messages."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str, detail: bool = False) -> None:
        self.messages.append(text)


def numbers(length: int = 4000) -> gloo_rank.TokenStream:
    return gloo_rank.TokenStream([gloo_rank.np.random.default_rng(0).integers(3, 64, length).astype("uint16")], "train")


@pytest.fixture
def trainer() -> Iterator[Trainer]:
    config = gloo_rank.config()
    torch.manual_seed(0)
    with Loader(numbers(), 0) as loader:
        made = Trainer(GPT(config.model).train(), loader, config, ALONE)
        made.step(0.0)  # nothing is zero any more
        made.step(0.6)
        yield made


@pytest.mark.parametrize("fails_at", [0, 1, 3])
def test_a_failed_compilation_changes_nothing(trainer: Trainer, monkeypatch: pytest.MonkeyPatch, fails_at: int) -> None:
    """As memory runs out first where looping begins: after steps that already moved weights and random numbers."""
    gloo_rank.pretend_compiler(monkeypatch.setattr)
    original, calls = Trainer.warm_up, 0

    def failing(self: Trainer, fraction: float, alone: bool = False) -> None:
        nonlocal calls
        original(self, fraction, alone=False)  # moves weights, momentum and random numbers
        calls += 1
        if alone and calls > fails_at:
            raise RuntimeError("the compiler failed\nwith many lines")

    monkeypatch.setattr(Trainer, "warm_up", failing)
    tensors, values = trainer.snapshot()
    told = Told()
    runtime = dataclasses.replace(ALONE, compile=True)
    assert prepare(trainer, gloo_rank.config(), runtime, told)[0] == "plain"
    after, values_after = trainer.snapshot()
    assert tensors.keys() == after.keys()
    assert {"weights", "muon.momentum", "adam.embed.first", "random"} <= tensors.keys()
    assert [name for name in tensors if not torch.equal(tensors[name], after[name])] == []
    assert values == values_after
    assert told.messages == ["torch.compile failed; training continues without it (the compiler failed)"]


@pytest.mark.parametrize("pace", [0.5, 2.0])
@pytest.mark.parametrize("speedup", [0.9, 1.2])
def test_a_machine_that_changes_its_speed_while_it_compiles_does_not_decide(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, speedup: float, pace: float
) -> None:
    """On a clock that only moves with the steps; each way's first step after compiling takes half a minute more."""
    gloo_rank.pretend_compiler(monkeypatch.setattr)
    monkeypatch.setattr(preparation, "_step_seconds", judge)
    clock, compiling, warm = [0.0], [False], set()
    for name in ("perf_counter", "process_time"):
        monkeypatch.setattr(preparation.time, name, lambda: clock[0])

    def graph(model: GPT, runtime: Runtime) -> None:
        model.compiled = Parts(*[lambda *given: None] * 4)  # type: ignore[arg-type]

    def step(self: Trainer, fraction: float, alone: bool = False) -> None:
        way = self.model.compiled is not None
        compiling[0] |= way
        cold = compiling[0] and not alone and way not in warm
        clock[0] += (pace if compiling[0] else 1.0) / (speedup if way else 1.0) + 30.0 * cold
        warm.update([way] * (compiling[0] and not alone))

    monkeypatch.setattr(paths, "use_graph", graph)
    monkeypatch.setattr(Trainer, "warm_up", step)
    ready, facts = prepare(trainer, gloo_rank.config(), dataclasses.replace(ALONE, compile=True), Told())
    assert ready == ("compiled" if speedup > 1.0 else "plain")
    assert facts["torch.compile"]["speedup"] == pytest.approx(speedup, abs=0.001)
    assert (trainer.model.compiled is not None) == (speedup > 1.0)


def test_it_trains_in_bfloat16() -> None:
    """A GPU's arithmetic on the CPU: bfloat16 activations, float32 weights; losses as in float32 to its precision."""
    settings = configs.load(None, None, [*gloo_rank.SETTINGS, "train.iterations=6"])
    losses = {}
    for dtype in (torch.float32, torch.bfloat16):
        seen: list[float] = []
        hooks = Hooks(known=lambda results, at, seen=seen: seen.extend(result.loss for result in results))
        made = gloo_rank.run(settings, dataclasses.replace(ALONE, dtype=dtype), hooks)
        assert made.trainer.flat.data.dtype == torch.float32
        losses[dtype] = seen
    assert len(losses[torch.bfloat16]) == 6
    assert losses[torch.bfloat16] == pytest.approx(losses[torch.float32], abs=0.02)
    assert losses[torch.bfloat16] != losses[torch.float32]


@pytest.mark.parametrize(("device", "graphs"), [("cpu", 3), ("cuda", 6)])
def test_looping_and_later_steps_add_no_graph(monkeypatch: pytest.MonkeyPatch, device: str, graphs: int) -> None:
    """Compiled graphs, counted with a backend that compiles nothing, in the record's shape scaled down.

    Blocks without and with a skip, and lanes (at an odd number of blocks the last layer, which gets no skip, is one
    more); on a GPU also embedding, end and softmax. Switching the loop on is none, nor is a second step: one more would
    be another half minute of compiling inside the clock.
    """
    torch._dynamo.reset()
    counter = CompileCounter()
    compile_plainly = torch.compile
    monkeypatch.setattr(
        paths.torch, "compile", lambda function, dynamic=None: compile_plainly(function, backend=counter)
    )
    small = ["model.num_layers=6", "model.parallel_from=4", "model.loop_first=2", "model.loop_last=3"]
    small += ["model.vocab_size=64", "model.dim=32", "model.num_heads=2", "model.num_kv_heads=1", "model.rope_dims=8"]
    sizes = ["train.batch_tokens=64", "train.seq_len=32", "train.micro_tokens=0", "train.seconds=0"]
    config = configs.load("record", None, [*small, *sizes])
    model = GPT(config.model).train()
    paths.use_graph(model, dataclasses.replace(ALONE, device=torch.device(device)))  # the type alone is looked at
    counts = []
    with Loader(numbers(), 0) as loader:
        trainer = Trainer(model, loader, config, ALONE)
        for fraction in (0.0, 0.5, 0.6):
            trainer.step(fraction)
            counts.append(counter.frame_count)
    assert counts == [graphs] * 3


def test_out_of_memory_names_the_setting_to_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: GPT, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has ...")

    monkeypatch.setattr(GPT, "loss", full)
    with (
        pytest.raises(
            PgolfError, match=r"out of memory on cpu in a pass of 128 tokens; lower train\.micro_tokens.* 64"
        ),
        naming_memory(gloo_rank.config(), ALONE),
    ):
        gloo_rank.run(gloo_rank.config(), ALONE)


def test_a_preset_for_gpus_is_refused_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    record = configs.load("record", None, ["model.num_layers=9", "model.parallel_from=-1", "model.parallel_lanes=1"])
    record = dataclasses.replace(record, model=dataclasses.replace(record.model, loop_passes=1, vocab_size=64))
    monkeypatch.setattr(GPT, "_initialize", lambda self: None)
    with pytest.raises(PgolfError, match=r"a step of 786,432 tokens is \d+ TFLOP.*needs a GPU, and pgolf runs on cpu"):
        gloo_rank.run(record, ALONE, length=10_000)


@pytest.mark.parametrize("processes", [2, 8])
def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch, processes: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, str(processes))
    for rank in range(2):  # also on the ranks that have one: they would wait for the others
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        with pytest.raises(PgolfError, match=rf"{processes} processes .* torch finds 1; start it with --nproc 1"):
            runtimes.choose("cuda", 1)


def test_a_gpu_without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Tesla V100")
    with pytest.raises(PgolfError, match="Tesla V100 cannot compute in bfloat16"):
        runtimes.choose("auto", 1)


def test_fit_reports_device_and_number_of_passes() -> None:
    told = Told()
    config = configs.load(None, None, [*gloo_rank.SETTINGS, "train.iterations=60"])
    display = Display(config.train, 3800, told, At(0.0, 0, 0.0))
    gloo_rank.run(config, ALONE, Hooks(stop=display.around(nullcontext(lambda: False)), known=display.add), told)
    assert told.messages[0].endswith("on cpu (1 thread, float32)")
    # 60 steps of 128 tokens over 3,800: two passes.
    assert any("2 passes over the 3,800 train tokens" in text for text in told.messages)
    assert str(dataclasses.replace(ALONE, world_size=2)) == "2 processes, each on cpu (1 thread, float32)"


def test_finding_out_which_pieces_are_alike_is_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads the train text, so the clock counts it."""
    now = 100.0

    def slow(*given: object) -> torch.Tensor:
        nonlocal now
        now += 7.0
        return torch.eye(64)

    monkeypatch.setattr(fits, "likeness", slow)
    config = configs.load(None, None, [*gloo_rank.SETTINGS, "optim.shared_lr=0.3", "train.reserve_seconds=0"])
    holdout = Holdout.of(numbers(), config)
    with Loader(holdout.training, 0) as loader:
        made = fits.fit(config, loader, holdout, ALONE, Silent(), clock=lambda: now)
    assert made.seconds == 7.0


def test_pieces_are_alike_by_spelling_and_by_neighbours() -> None:
    pieces = [b"", b"", b"", b"", *(b" %ding" % number for number in range(56))]
    config = configs.load(None, None, [*gloo_rank.SETTINGS, "optim.shared_lr=0.3", "optim.shared_neighbours=5"])
    found = likeness(numbers(), pieces, config)
    spelt = spelling.properties(pieces)
    assert found.shape == (64, spelt.shape[1] + 5)
    assert torch.equal(found[:60, :-5], spelt)
    assert not found[60:, :-5].any()  # rows that no piece has
    lengths = torch.linalg.vector_norm(found[:, -5:], dim=1)
    torch.testing.assert_close(lengths[3:], torch.full_like(lengths[3:], 2.0))
    with pytest.raises(PgolfError, match=r"optim\.shared_spelling needs the tokenizer"):
        likeness(numbers(), None, config)
