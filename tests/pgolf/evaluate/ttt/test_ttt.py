"""Test-time training: nothing learns from what is not scored yet, and what is learned helps."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pgolf.config.evaluate import EvaluateConfig
from pgolf.config.model import ModelConfig
from pgolf.config.ttt import TttConfig
from pgolf.errors import PgolfError
from pgolf.evaluate.sliding import SlidingEvaluator
from pgolf.evaluate.ttt.methods import TttEvaluator
from pgolf.model.gpt import GPT
from pgolf.runtime import Runtime

RUNTIME = Runtime(torch.device("cpu"), torch.float32, world_rank=0, world_size=1, threads=1, compile=False)
SETTINGS = EvaluateConfig(seq_len=32, stride=8, batch_windows=4)
BOS = 1
METHODS = {
    "dynamic": TttConfig(chunk_tokens=8, lr=1e-2),
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


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"in-place"}))
def test_parts_that_look_back_see_no_token_before_it_is_scored(method: str) -> None:
    test_a_token_changes_no_score_fixed_before_it(build(**PARTS), method)


def test_in_place_says_which_models_it_cannot_run() -> None:
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


def test_the_time_budget_ends_learning_not_scoring(model: GPT) -> None:
    trace = TttEvaluator(model, SETTINGS, replace(METHODS["dynamic"], seconds=0.5), RUNTIME).score(stream())
    assert trace.facts["out_of_time"] is True
    assert trace.facts["chunks_learned"] == 0
