"""Test-time training: nothing learns from what is not scored yet, and what is learned helps."""

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pgolf.config.evaluate import EvaluateConfig
from pgolf.config.model import ModelConfig
from pgolf.config.ttt import TttConfig
from pgolf.errors import PgolfError
from pgolf.evaluate import scoring_order
from pgolf.evaluate.sliding import SlidingEvaluator
from pgolf.evaluate.ttt import lora, methods, time_cap
from pgolf.evaluate.ttt.methods import TttEvaluator
from pgolf.evaluate.ttt.task import Clock
from pgolf.evaluate.ttt.time_cap import PROBE_MOST, Capped, Enough, Probe
from pgolf.model.gpt import GPT
from pgolf.runtime import Runtime

RUNTIME = Runtime(torch.device("cpu"), torch.float32, world_rank=0, world_size=1, threads=1, compile=False)
SETTINGS = EvaluateConfig(seq_len=32, stride=8, batch_windows=4)
BOS = 1
METHODS = {
    "dynamic": TttConfig(chunk_tokens=8, lr=1e-2),
    "mixing": TttConfig(chunk_tokens=8, lr=1e-2, mixing_lr=0.005),
    "chunks": TttConfig(
        chunk_tokens=64, epochs=2, optimizer="sgd", lr=0.1, schedule="cosine", output_lr=(), output_stream_lr=()
    ),
    "lora": TttConfig(method="lora", lora_rank=2, lora_lr=0.02, lora_documents=3),
    "in-place": TttConfig(method="in-place", in_place_lr=0.02),
    "phased": TttConfig(method="phased", lora_rank=2, lora_documents=3, phases=2, lr=1e-3),
}


def build(**parts: Any) -> GPT:
    torch.manual_seed(0)
    made = GPT(ModelConfig(vocab_size=64, dim=16, num_layers=2, num_heads=2, num_kv_heads=1, **parts))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made.eval()


@pytest.fixture(scope="module")
def model() -> GPT:
    return build()


PARTS = {"canon_taps": 3, "head_map": True, "asymmetric_softcap": True, "copy_orders": (1, 2), "copy_input": True}


def stream(length: int = 400) -> np.ndarray:
    """A text that repeats one phrase, in documents of odd lengths, so that there is something to learn."""
    rng = np.random.default_rng(0)
    phrase = rng.integers(3, 64, 12)
    tokens = np.resize(phrase, length).astype(np.uint16)
    tokens[[0, 90, 91, 200, 317]] = BOS
    return tokens


@pytest.mark.parametrize("method", METHODS)
def test_learning_helps_and_leaves_the_model_alone(model: GPT, method: str) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tokens = stream()
    fixed = SlidingEvaluator(model, SETTINGS, RUNTIME).score(tokens).nll
    learned = TttEvaluator(model, SETTINGS, METHODS[method], RUNTIME).score(tokens).nll
    assert learned.mean() < fixed.mean() - 0.01
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("method", METHODS)
def test_a_token_changes_no_score_fixed_before_it(model: GPT, method: str) -> None:
    tokens = stream()
    evaluator = TttEvaluator(model, SETTINGS, METHODS[method], RUNTIME)
    for position in (1, 37, 64, 205, 399):
        other = tokens.copy()
        other[position] = 3 + (int(tokens[position]) - 2) % 60
        first, second = evaluator.score(tokens, [position]), evaluator.score(other, [position])
        np.testing.assert_array_equal(first.order, second.order)
        step = first.order[position - 1]
        index = np.arange(len(first.nll))
        earlier = (first.order < step) | ((first.order == step) & (index < position - 1))
        np.testing.assert_allclose(first.nll[earlier], second.nll[earlier], atol=1e-5)
        np.testing.assert_allclose(first.log_probs[position], second.log_probs[position], atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_the_table_of_the_order_shows_a_valid_one_and_tells_a_forged_one(
    model: GPT, method: str, tmp_path: Path
) -> None:
    tokens = stream()
    trace, path = TttEvaluator(model, SETTINGS, METHODS[method], RUNTIME).score(tokens), tmp_path / "order.csv"
    scoring_order.write(path, trace)
    assert scoring_order.faults(path, len(tokens) - 1) == []
    lines = path.read_text().splitlines()
    rows = [line.split(",") for line in lines[1:]]
    assert sum(int(last) - int(first) + 1 for what, first, last, *_ in rows if "score" in what) == len(tokens) - 1
    learned = next(row for row in rows if row[0] == "learn")
    assert int(learned[4]) > 0
    early = ",".join([*learned[:2], str(len(tokens) - 1), "0", "1"])  # an update from the whole text, before it
    path.write_text("\n".join([*lines, early]))
    assert "after an update at step 0 that learned from it" in scoring_order.faults(path, len(tokens) - 1)[0]
    for damaged in ("score,1,1,9223372036854775808,0", "learn,1,1", "learn,0,1,1,1", "score,1,x,1,1"):
        path.write_text("\n".join([*lines, damaged]))
        assert "not a table of the intervals" in scoring_order.faults(path, len(tokens) - 1)[0]
    path.write_text("\n".join([*lines, next(line for line in lines if line.startswith("score"))]))
    assert "is scored 2 times" in scoring_order.faults(path, len(tokens) - 1)[0]


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"in-place"}))
def test_parts_that_look_back_see_no_token_before_it_is_scored(method: str) -> None:
    test_a_token_changes_no_score_fixed_before_it(build(**PARTS), method)


def test_in_place_refuses_unsupported_models_by_name() -> None:
    with pytest.raises(PgolfError, match="no lanes, backout or copy heads"):
        TttEvaluator(build(**PARTS), SETTINGS, METHODS["in-place"], RUNTIME).score(stream())


@pytest.mark.parametrize("method", METHODS)
def test_distributions_sum_to_one_and_hold_the_score(model: GPT, method: str) -> None:
    tokens = stream()
    positions = [1, 9, 100, 399]
    trace = TttEvaluator(model, SETTINGS, METHODS[method], RUNTIME).score(tokens, positions)
    assert sorted(trace.log_probs) == positions
    for position in positions:
        vector = trace.log_probs[position]
        assert np.exp(vector).sum() == pytest.approx(1.0, abs=1e-6)
        assert -vector[tokens[position]] == pytest.approx(trace.nll[position - 1], abs=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("length", [2, 33, 41])
def test_awkward_lengths_are_scored_whole(model: GPT, method: str, length: int) -> None:
    assert TttEvaluator(model, SETTINGS, METHODS[method], RUNTIME).score(stream(400)[:length]).nll.shape == (
        length - 1,
    )


@pytest.mark.parametrize("method", ["dynamic", "chunks"])
def test_without_learning_it_is_sliding(model: GPT, method: str) -> None:
    ttt = replace(METHODS[method], epochs=0, output_lr=(), output_stream_lr=())
    tokens = stream()
    np.testing.assert_allclose(
        TttEvaluator(model, SETTINGS, ttt, RUNTIME).score(tokens).nll,
        SlidingEvaluator(model, SETTINGS, RUNTIME).score(tokens).nll,
        atol=1e-5,
    )


class Ending(Clock):
    """Lets learning end after some questions."""

    left = 5

    def may_learn(self, left: float) -> bool:
        self.left -= 1
        self.stopped = self.left < 0
        return not self.stopped


@pytest.mark.parametrize("method", METHODS)
def test_when_time_ends_the_rest_is_scored_without_learning(model: GPT, method: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(methods, "Clock", Ending)
    test_a_token_changes_no_score_fixed_before_it(model, method)
    trace = TttEvaluator(model, SETTINGS, METHODS[method], RUNTIME).score(stream())
    assert trace.facts["out_of_time"] is True
    if method in ("lora", "phased"):  # two groups: the second has no adapters
        evaluate = replace(SETTINGS, reset_at_documents=True)
        fixed = SlidingEvaluator(model, evaluate, RUNTIME).score(stream())
        assert abs(trace.nll - fixed.nll)[90] < 1e-5  # the document of one token, in the last group


def test_what_cannot_fit_the_cap_is_refused_with_the_estimate(model: GPT) -> None:
    with pytest.raises(PgolfError, match=r"ttt.seconds is 0.5, but scoring .* takes about [\d,]+ s"):
        TttEvaluator(model, SETTINGS, replace(METHODS["dynamic"], seconds=0.5), RUNTIME).score(stream())


def test_the_clock_keeps_the_time_that_scoring_needs(monkeypatch: Any) -> None:
    now = [0.0]
    monkeypatch.setattr(time_cap.time, "monotonic", lambda: now[0])
    clock = Capped(cap=600.0, seconds_per_pass=1e-3, started=0.0)
    assert clock.may_learn(500_000)  # 575 of the 599 seconds
    now[0] = 25.0
    assert not clock.may_learn(500_000)
    assert not clock.may_learn(1)


def test_an_estimate_is_the_measured_pace_times_the_passes(model: GPT, monkeypatch: Any) -> None:
    found = []
    evaluator = TttEvaluator(model, SETTINGS, METHODS["lora"], RUNTIME, on_estimate=found.append)
    monkeypatch.setattr(Probe, "pace", 2.0)
    evaluator.score(stream())
    # Documents of 90, 1, 109, 117 and 82 targets: windows of 32, then one more of 32 for every 8 targets.
    alone = sum(min(n, 32) + 32 * -(-max(0, n - 32) // 8) for n in (90, 1, 109, 117, 82))
    groups = ((117, 109, 90), (82, 1))
    learned = sum(min(at + 8, 32) * sum(n > at for n in group) for group in groups for at in range(0, group[0], 8))
    assert (found[0].scoring, found[0].learning) == (2.0 * alone, 2.0 * 3 * learned)
    assert "learn from about 0%" in found[0].line(2.2 * alone)


def test_the_softcap_is_learned_at_test_time() -> None:
    shifted = build(asymmetric_softcap=True, logit_softcap=2.0)
    with torch.no_grad():
        shifted.softcap_shift.zero_()
    tokens = stream()
    control = replace(METHODS["phased"], weights=("control",), lr=0.05)
    fixed = TttEvaluator(shifted, SETTINGS, replace(control, lr=0.0), RUNTIME).score(tokens)
    learned = TttEvaluator(shifted, SETTINGS, control, RUNTIME).score(tokens)
    names = [name for name, _ in shifted.named_parameters() if shifted.matrix_roles().get(name, "control") == "control"]
    assert "softcap_shift" in names
    assert learned.nll.mean() < fixed.nll.mean()


def test_chunks_by_length_and_maps_without_adapters(model: GPT) -> None:
    ttt = replace(METHODS["lora"], lora_chunks=((100, 4),), lora_without=("attn.c_q", "attn.c_v"))
    evaluator = TttEvaluator(model, SETTINGS, ttt, RUNTIME)
    order = evaluator.score(stream()).order
    assert np.unique(order[:90]).size == 23  # 90 targets, 4 at a time
    assert np.unique(order[91:200]).size == 14  # 109, 8 at a time
    adapters = lora.Adapters(model, 2, ttt, torch.device("cpu"))
    assert len(adapters.parameters) == 2 * (2 * 4 + 1)  # two layers of c_k, proj, fc, proj; the head
    with pytest.raises(PgolfError, match="lora_without holds"):
        TttConfig(lora_without=("c_q",))


@pytest.mark.parametrize(
    ("share", "phases", "ends"), [(0.0, 3, {91, 200}), (0.2, 2, {90}), (0.6, 2, {200}), (0.6, 3, {91, 200})]
)
def test_where_the_global_steps_are_taken(model: GPT, share: float, phases: int, ends: set[int]) -> None:
    """Documents end at 90, 91, 200, 317 and 399; a global step learns from all of them up to its own."""
    ttt = replace(METHODS["phased"], phase_share=share, phases=phases, lora_lr=0.0)
    updates = TttEvaluator(model, SETTINGS, ttt, RUNTIME).score(stream()).updates
    assert {last + 1 for _, _, last, _, _ in updates} == ends
    with pytest.raises(PgolfError, match="phase_share is 1; it must lie in"):
        TttConfig(phase_share=1.0)


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_activations(method: str) -> None:
    model, tokens = build(), stream()
    # Adapters that learn fast magnify any rounding: at the usual rate by 5 nats of a token on a processor with AVX2.
    ttt = replace(METHODS[method], lora_lr=1e-3)
    expected = TttEvaluator(model, SETTINGS, ttt, RUNTIME).score(tokens).nll.mean()
    model.compute_dtype = torch.bfloat16
    found = TttEvaluator(model, SETTINGS, ttt, RUNTIME).score(tokens).nll.mean()
    assert found == pytest.approx(expected, abs=0.05)
    assert found != expected


@pytest.mark.parametrize("slow", [{0: 30.0}, {0: 9.0, 3: 20.0}, {1: 5.0, 2: 5.0}])
def test_what_compiles_in_a_step_says_nothing_about_the_others(
    slow: dict[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first run that compiled in its second step had promised 9,980 seconds for 200."""
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    probe = Probe(learns=True)
    with contextlib.suppress(Enough):
        for step in range(1000):
            now += slow.get(step, 0.02)
            probe.took(64.0)
    assert len(probe.steps) < 100
    assert probe.pace == pytest.approx(0.02 / 64)
    assert now < PROBE_MOST + sum(slow.values())


def test_a_probe_of_one_step_takes_it_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    probe = Probe(learns=False)
    assert probe.pace == 0.0  # a text without a target
    now = 3.0
    probe.took(6.0)
    assert probe.pace == 0.5
