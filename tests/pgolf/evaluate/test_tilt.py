"""The n-gram tilt: the published formula, normalized, and counts of scored tokens alone, in the order of scoring."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pgolf.config.evaluate import EvaluateConfig
from pgolf.config.model import ModelConfig
from pgolf.config.ttt import TttConfig
from pgolf.errors import CheckFailed, PgolfError
from pgolf.evaluate import scoring_order, tilt
from pgolf.evaluate.distributions import parts
from pgolf.evaluate.evaluator import Positions, Trace
from pgolf.evaluate.sliding import SlidingEvaluator
from pgolf.evaluate.tilt import TiltEvaluator
from pgolf.evaluate.ttt.methods import TttEvaluator
from pgolf.model.gpt import GPT
from pgolf.runtime import Runtime

VOCAB, BOS = 24, 1
RUNTIME = Runtime(torch.device("cpu"), torch.float32, world_rank=0, world_size=1, threads=1, compile=False)
SETTINGS = EvaluateConfig(seq_len=32, stride=8, batch_windows=4, tilt_boost=2.625, tilt_order=4, tilt_threshold=0.6)
TTT = {
    "sliding": None,
    "sgd": TttConfig(chunk_tokens=8, lr=1e-2),
    "chunks": TttConfig(chunk_tokens=64, epochs=2, output_lr=(), output_stream_lr=()),
    "lora": TttConfig(method="lora", lora_rank=2, lora_lr=0.02, lora_documents=2, chunk_tokens=8),
    "phased": TttConfig(method="phased", lora_rank=2, lora_documents=2, phases=2, lr=1e-3, chunk_tokens=8),
    "in-place": TttConfig(method="in-place", in_place_lr=0.02),
}


def stream(length: int = 300) -> np.ndarray:
    """Documents of odd lengths that repeat a phrase with errors, so that contexts return with different successors."""
    rng = np.random.default_rng(3)
    tokens = np.resize(rng.integers(3, VOCAB, 11), length).astype(np.uint16)
    wrong = rng.random(length) < 0.08
    tokens[wrong] = rng.integers(3, VOCAB, wrong.sum())
    tokens[[0, 60, 61, 170, 230]] = BOS
    return tokens


def model() -> GPT:
    torch.manual_seed(0)
    made = GPT(ModelConfig(vocab_size=VOCAB, dim=16, num_layers=1, num_heads=2, num_kv_heads=1))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made.eval()


def base(name: str) -> SlidingEvaluator | TttEvaluator:
    ttt = TTT[name]
    return (
        SlidingEvaluator(model(), SETTINGS, RUNTIME) if ttt is None else TttEvaluator(model(), SETTINGS, ttt, RUNTIME)
    )


def published(tokens: list[int], order: list[int], settings: EvaluateConfig) -> list[tuple[int, float] | None]:
    """The token expert as the challenge's #1145 and #2135 describe it, with dictionaries in place of their hash tables:
    by target, its hint and the share of the context's earlier places that the hint followed, where there are any."""
    total: dict[tuple[int, ...], int] = {}
    pair: dict[tuple[int, ...], int] = {}
    top: dict[tuple[int, ...], tuple[int, int]] = {}  # token, its count
    found: list[tuple[int, float] | None] = [None] * (len(tokens) - 1)
    seen = {0}
    for at in sorted(range(1, len(tokens)), key=lambda at: (order[at - 1], at)):
        places = range(at - settings.tilt_order + 1, at)
        if all(place in seen for place in places):
            context = tuple(tokens[place] for place in places)
            if context in top:
                found[at - 1] = top[context][0], top[context][1] / total[context]
            total[context] = total.get(context, 0) + 1
            count = pair[*context, tokens[at]] = pair.get((*context, tokens[at]), 0) + 1
            if count > top.get(context, (0, 0))[1]:
                top[context] = tokens[at], count
        seen.add(at)
    return found


@pytest.mark.parametrize("name", TTT)
def test_scores_are_those_of_the_published_formula(name: str) -> None:
    tokens, everywhere = stream(), range(1, 300)
    plain = base(name).score(tokens, everywhere)
    tilted = TiltEvaluator(base(name), SETTINGS).score(tokens, [*everywhere])
    hints = published(tokens.tolist(), plain.order.tolist(), SETTINGS)
    fired = 0
    for position in everywhere:
        p = np.exp(plain.log_probs[position])
        hint = hints[position - 1]
        if hint is not None and hint[1] >= SETTINGS.tilt_threshold:
            fired += 1
            p[hint[0]] *= math.exp(SETTINGS.tilt_boost)
            p /= p.sum()
        np.testing.assert_allclose(np.exp(tilted.log_probs[position]), p, atol=1e-9)
        assert tilted.nll[position - 1] == pytest.approx(-math.log(p[tokens[position]]), abs=1e-4)
        assert np.exp(tilted.log_probs[position]).sum() == pytest.approx(1.0, abs=1e-9)
    assert 20 < fired < 290
    assert tilted.facts["tilt"]["hinted"] == fired  # type: ignore[index]
    assert tilted.nll.mean() < plain.nll.mean() - 0.01
    alone = TiltEvaluator(base(name), SETTINGS).score(tokens).nll  # with parts of distributions in place of whole ones
    np.testing.assert_allclose(alone, tilted.nll, atol=1e-6)


@pytest.mark.parametrize("name", ["sliding", "sgd", "lora", "phased"])
def test_nothing_depends_on_what_is_scored_later(name: str) -> None:
    tokens, evaluator = stream(), TiltEvaluator(base(name), SETTINGS)
    for position in (37, 100, 171, 299):
        other = tokens.copy()
        other[position] = 3 + (int(tokens[position]) - 2) % (VOCAB - 3)
        first, second = evaluator.score(tokens, [position]), evaluator.score(other, [position])
        earlier = first.order < first.order[position - 1]
        np.testing.assert_allclose(first.nll[earlier], second.nll[earlier], atol=1e-5)
        np.testing.assert_allclose(first.log_probs[position], second.log_probs[position], atol=1e-4)


@pytest.mark.parametrize("name", ["sliding", "sgd", "lora", "phased"])
def test_the_order_on_record_shows_that_counts_learn_after_the_score(name: str, tmp_path: Path) -> None:
    trace, path = TiltEvaluator(base(name), SETTINGS).score(stream()), tmp_path / "order.csv"
    np.testing.assert_array_equal(np.sort(trace.order), np.arange(299))
    scoring_order.write(path, trace)
    assert scoring_order.faults(path, 299) == []
    each = [line.split(",") for line in path.read_text().splitlines() if line.startswith("learn-each")]
    assert sum(int(last) - int(first) + 1 for _, first, last, *_ in each) >= 299


@dataclass(frozen=True)
class OutOfOrder:
    """Plans one order and scores in another."""

    def planned(self, tokens: np.ndarray) -> np.ndarray:
        return np.zeros(len(tokens) - 1, np.int64)

    def score(self, tokens: np.ndarray, positions: Positions = ()) -> Trace:
        vector = np.full(VOCAB, -math.log(VOCAB))
        found = {position: vector[part] for position, part in parts(positions).items()}
        return Trace(-vector[tokens[1:]], np.arange(len(tokens) - 1)[::-1], found)


def test_another_order_than_planned_is_no_score() -> None:
    with pytest.raises(CheckFailed, match="another order"):
        TiltEvaluator(OutOfOrder(), SETTINGS).score(stream())


def test_contexts_are_compared_whole() -> None:
    """Many contexts in a small table: a shared entry would be a hint that no place of the text supports."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 65_536, 4000).astype(np.uint16)
    tokens[3000:3400] = tokens[100:500]
    tokens[3200] += 1
    settings = replace(SETTINGS, tilt_order=16, tilt_threshold=0.8)
    hints = tilt.hints_of(tokens, np.arange(3999), settings)
    found = np.flatnonzero(hints >= 0)
    expected = [at for at in range(3000 + 15, 3401) if not 3200 < at <= 3215]  # the last one follows the copy
    np.testing.assert_array_equal(found + 1, expected)
    np.testing.assert_array_equal(hints[found], tokens[found + 1 - 2900])


def test_off_is_the_evaluator_itself_and_wrong_settings_are_named() -> None:
    evaluator = base("sliding")
    assert tilt.over(evaluator, replace(SETTINGS, tilt_boost=0.0)) is evaluator
    for wrong in ({"tilt_boost": -1.0}, {"tilt_order": 0}, {"tilt_threshold": 0.0}):
        with pytest.raises(PgolfError, match="tilt_boost"):
            EvaluateConfig(**wrong)  # type: ignore[arg-type]
