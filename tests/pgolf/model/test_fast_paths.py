"""Fast paths: chosen because they are measured to be faster, cached safely, never slower than what they replace."""

import dataclasses
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pgolf import config as configs
from pgolf.config.evaluate import EvaluateConfig
from pgolf.config.model import ModelConfig
from pgolf.evaluate.sliding import SlidingEvaluator
from pgolf.model import fast_paths, paths, raced_pairs
from pgolf.model.fast_paths import Compilation, Timing, choose_paths, plain_model
from pgolf.model.gpt import GPT
from pgolf.model.kernels import cache, loss, native
from pgolf.model.layers import bfloat16_linear
from pgolf.model.loss import PLAIN
from pgolf.model.raced_pairs import Shape
from pgolf.runtime import Runtime

CONFIG = ModelConfig(vocab_size=512, dim=64, num_layers=2, num_heads=2, num_kv_heads=1)
SHAPE = Shape(rows=4, length=128, training=True, threads=1)
SLOWER = 1.5  # times the plain path that a chosen one may take on a noisy machine


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_paths, "RACE_SECONDS", 0.05)


def cached(kernels: Runtime, folder: Path) -> Runtime:
    return dataclasses.replace(kernels, cache=folder / "private")


def test_a_cached_file_is_ignored_when_damaged_or_in_a_folder_that_others_can_write(tmp_path: Path) -> None:
    folder = tmp_path / "private"
    cache.keep(folder, "ab", b"first")
    cache.keep(folder, "ab", b"second")
    found = cache.find(folder, "ab")
    assert found is not None
    assert found.read_bytes() == b"second"
    assert len(list(folder.iterdir())) == 1
    link = tmp_path / "link"
    link.symlink_to(folder)
    assert cache.find(link, "ab") is None
    folder.chmod(0o755)
    assert cache.find(folder, "ab") is None
    folder.chmod(0o700)
    found.write_bytes(b"another")
    assert cache.find(folder, "ab") is None


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache.keep(tmp_path / "file", "ab", b"1")
    cache.keep(tmp_path / "file" / "below", "ab", b"1")
    cache.keep(None, "ab", b"1")
    assert [cache.find(folder, "ab") for folder in (tmp_path / "file", tmp_path / "none", None)] == [None] * 3


def test_a_second_start_compiles_and_measures_nothing(
    kernels: Runtime, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = cached(kernels, tmp_path)
    monkeypatch.setattr(native, "_loaded", {})
    first = choose_paths(GPT(CONFIG), runtime, SHAPE)
    monkeypatch.setattr(native, "_loaded", {})
    monkeypatch.setattr("subprocess.run", lambda *given, **more: pytest.fail("a kernel was compiled again"))
    monkeypatch.setattr(fast_paths, "_race", lambda *given: pytest.fail("a path was measured again"))
    again = choose_paths(GPT(CONFIG), runtime, SHAPE)
    assert again == first
    timed = {*paths.IN_C, paths.NORMS, paths.MLPS, paths.LOSS}
    assert timed <= set(first.timings) <= timed | {paths.HEADS}  # where attention in C wins
    for name, timing in first.timings.items():
        assert f"{name} {'on' if timing.used else 'off'}" in first.line()


@pytest.mark.parametrize("seconds", [0.0001, 0.018, 0.02, 0.025])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_choice_takes_two_seconds_at_most(seconds: float, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that only moves with the work: `seconds` are those of one run of a path."""
    clock, runs = [0.0], [0]

    def work() -> list[Tensor]:
        clock[0] += seconds
        runs[0] += 1
        return [torch.ones(1)]

    on_clock(monkeypatch, clock)
    monkeypatch.setattr(fast_paths, "LOADERS", dict.fromkeys(fast_paths.LOADERS, lambda model, folder: None))
    pairs = dict.fromkeys(
        (*paths.IN_C, paths.COPIES, paths.NORMS, paths.MLPS, paths.HEADS, paths.LOSS), lambda *given: (work, work)
    )
    monkeypatch.setattr(fast_paths, "PAIRS", pairs)
    monkeypatch.setattr(Timing, "used", True)
    for name in ("layer_products", "tiled_attention", "tiled_products"):
        monkeypatch.setattr(fast_paths, name, lambda *given: (work, work))
    monkeypatch.setattr(fast_paths, "use_paths", lambda *given: None)
    runtime = Runtime(torch.device("cpu"), torch.float32, 0, 1, threads, compile=True)
    model = GPT(dataclasses.replace(CONFIG, copy_orders=(1, 2)))
    choice = choose_paths(model, runtime, dataclasses.replace(SHAPE, threads=threads), "auto")
    assert len(choice.timings) == 12
    assert all(timing.fast == pytest.approx(seconds) for timing in choice.timings.values())
    assert runs[0] >= 60
    assert clock[0] <= 2.0


def test_a_run_of_a_race_is_bounded_on_a_wide_model() -> None:
    """The largest preset's operations at 20 GFLOP/s, a slow core, stay within what the clock test above assumes."""
    config = dataclasses.replace(CONFIG, vocab_size=50_304, dim=768, num_heads=12, num_kv_heads=12)
    shape = Shape(rows=64, length=2048, training=True, threads=1)
    with torch.device("meta"):
        model = GPT(config)
    block = sum(weight.numel() for name, weight in model.blocks[0].named_parameters() if name.endswith(".weight"))
    tokens = raced_pairs._tokens(shape, raced_pairs.TOKENS, 6 * block)
    assert 8 <= tokens < 4096
    assert 6 * block * tokens <= 0.025 * 20e9


def on_clock(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    for name in ("perf_counter", "process_time"):
        monkeypatch.setattr(fast_paths.time, name, lambda: clock[0])


@pytest.mark.parametrize("late", [0, 1])
@pytest.mark.parametrize("slow", ["plain", "fast"])
def test_a_cold_first_run_or_one_disturbed_run_decides_no_race(
    late: int, slow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run of each way (late 0), or its first that is timed, takes two seconds more."""
    clock, runs = [0.0], {"plain": 0, "fast": 0}
    on_clock(monkeypatch, clock)

    def work(name: str) -> list[Tensor]:
        clock[0] += 0.03 + 0.01 * (name == slow) + 2.0 * (runs[name] == late and name != slow)
        runs[name] += 1
        return [torch.ones(1)]

    for threads in (1, 2):
        runs |= dict.fromkeys(runs, 0)
        shape = dataclasses.replace(SHAPE, threads=threads)
        timing = fast_paths._race(lambda: work("plain"), lambda: work("fast"), 1e-4, shape)
        assert timing.used == (slow == "plain")


@pytest.mark.parametrize("fault", ["slow", "wrong"])
def test_a_slow_or_wrong_kernel_is_not_used(
    fault: str, kernels: Runtime, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = loss.softmax

    def bad(*given: Any) -> Tensor:
        stop = time.process_time() + 0.02 * (fault == "slow")  # not asleep: races on one thread count processor time
        while time.process_time() < stop:
            pass
        return right(*given) + (fault == "wrong")

    monkeypatch.setattr(loss, "softmax", bad)
    model = GPT(CONFIG)
    choice = choose_paths(model, kernels, SHAPE)
    assert not choice.uses("softmax in C")
    assert model.arithmetic.softmax is not bad
    assert any("softmax in C: its results are off" in note for note in choice.notes) == (fault == "wrong")


def test_the_rule_times_nothing_and_leaves_out_a_wrong_kernel(
    kernels: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast_paths, "_race", lambda *given: pytest.fail("a path was timed"))
    model = GPT(CONFIG)
    fast_paths.paths_by_rule(model, kernels, SHAPE)
    assert model.native
    assert model.arithmetic.softmax is loss.softmax
    assert {module.products for module in model.modules() if hasattr(module, "products")} == {"torch"}
    right = loss.softmax
    monkeypatch.setattr(loss, "softmax", lambda *given: right(*given) + 1)
    fast_paths.paths_by_rule(model, kernels, SHAPE)
    assert model.native
    assert model.arithmetic == PLAIN


@pytest.mark.parametrize("threads", [1, 2])
def test_sliding_windows_in_c_score_what_the_plain_evaluator_does(threads: int, kernels: Runtime) -> None:
    torch.manual_seed(0)
    model, context = GPT(configs.load("mini").model).eval(), 128
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    # Few of the pieces, so that documents and copies occur; seven whole windows.
    tokens = np.random.default_rng(0).integers(0, 40, context + 6 * 64 + 1)
    ids, expected = torch.from_numpy(tokens), []
    for start in range(0, len(tokens) - context, 64):
        window = ids[start : start + context + 1]
        with torch.no_grad():
            logits = model.logits(model.hidden(window[None, :-1]))[0]
        losses = torch.nn.functional.cross_entropy(logits, window[1:], reduction="none")
        expected.append(losses[-64:] if start else losses)
    fast_paths.paths_by_rule(model, kernels, Shape(2, context, training=False, threads=1), scoring=True)
    assert model.scoring is not None
    settings = EvaluateConfig(seq_len=context, stride=64, batch_windows=2)
    trace = SlidingEvaluator(model, settings, dataclasses.replace(kernels, threads=threads)).score(tokens)
    np.testing.assert_allclose(trace.nll, torch.cat(expected).numpy(), atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_no_chosen_path_is_slower_than_the_one_it_replaces(training: bool, kernels: Runtime) -> None:
    """A slow path must not pass: interleaved, the median of several, measured apart from the choice itself."""
    model, shape = GPT(CONFIG), dataclasses.replace(SHAPE, training=training)
    choice = choose_paths(model, kernels, shape)
    for name, pair in raced_pairs.PAIRS.items():
        if choice.uses(name):
            with torch.set_grad_enabled(training):
                plain, fast = medians(*pair(model, shape))
            assert fast < SLOWER * plain, f"{name} is chosen and takes {fast / plain:.2f} times as long"
    tokens = torch.randint(CONFIG.vocab_size, (shape.rows, shape.length))
    other = GPT(CONFIG)
    plain_model(other)

    def step(which: GPT) -> None:
        with torch.set_grad_enabled(training):
            loss = which.loss(tokens, tokens)
        if training:
            loss.backward()

    plain, fast = medians(lambda: step(other), lambda: step(model))
    assert fast < SLOWER * plain, f"the chosen paths together take {fast / plain:.2f} times as long"


def medians(plain: Any, fast: Any, rounds: int = 9) -> tuple[float, float]:
    times: tuple[list[float], list[float]] = [], []
    for _ in range(rounds):
        for work, kept in ((plain, times[0]), (fast, times[1])):
            begun = time.process_time()  # one thread, and other processes do not count
            work()
            kept.append(time.process_time() - begun)
    return statistics.median(times[0]), statistics.median(times[1])


def test_torch_compile_is_used_where_it_saves_more_than_it_costs() -> None:
    known = Compilation(seconds=30.0, speedup=1.5)
    assert known.pays(91.0)  # a third of 91 s
    assert not known.pays(89.0)
    assert not Compilation(seconds=0.1, speedup=0.9).pays(1e9)


def test_what_a_compilation_cost_is_known_to_the_next_run(kernels: Runtime, tmp_path: Path) -> None:
    runtime, model = cached(kernels, tmp_path), GPT(CONFIG)
    assert fast_paths.known_compilation(model, runtime, SHAPE) == Compilation()
    fast_paths.remember_compilation(model, runtime, SHAPE, 7.5, 1.3)
    assert fast_paths.known_compilation(model, runtime, SHAPE) == Compilation(7.5, 1.3, measured=True)
    assert fast_paths.known_compilation(model, runtime, dataclasses.replace(SHAPE, rows=5)) == Compilation()


def test_bfloat16_products_round_factors_and_nothing_else() -> None:
    x, w = torch.randn(6, 32, requires_grad=True), torch.randn(5, 32, requires_grad=True)
    y = bfloat16_linear(x, w)
    exact = x.bfloat16().double() @ w.bfloat16().double().T
    torch.testing.assert_close(y.double(), exact, rtol=2**-8, atol=0.05)
    dx, dw = torch.autograd.grad(y.sum(), (x, w))
    assert (dx.dtype, dw.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(dx, w.sum(0).expand(6, 32), rtol=0.02, atol=0.05)
    model = GPT(CONFIG)
    runtime = Runtime(torch.device("cpu"), torch.float32, 0, 1, 1, compile=True)
    tokens = torch.randint(CONFIG.vocab_size, (2, 32))
    plain = model.loss(tokens, tokens)
    choose_paths(model, runtime, Shape(2, 32, True, 1), matmul="bfloat16")
    used = {module.products for module in model.modules() if hasattr(module, "products")}
    assert used in ({"bfloat16"}, {"tiles"})
    assert 0 < abs(model.loss(tokens, tokens).item() - plain.item()) < 0.02
