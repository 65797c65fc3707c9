"""The mixture: normalized, causal, and worth something on text that repeats itself."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from pgolf.evaluate.evaluator import Trace
from pgolf.evaluate.mixture import DISCOUNT, Backoff, MixtureEvaluator

VOCAB, BOS = 20, 1


@dataclass(frozen=True)
class Fixed:
    """A model without context, whose distribution is drawn once."""

    def score(self, tokens: np.ndarray, positions: Sequence[int] = ()) -> Trace:
        logits = np.random.default_rng(0).normal(size=VOCAB)
        vector = logits - np.log(np.exp(logits).sum())
        nll = -vector[tokens[1:]]
        return Trace(nll, np.zeros(len(nll), np.int64), dict.fromkeys(positions, vector))


def stream() -> np.ndarray:
    rng = np.random.default_rng(1)
    phrase = rng.integers(3, VOCAB, 30)
    parts = [np.concatenate([[BOS], np.roll(phrase, -start)[:25], rng.integers(3, VOCAB, 5)]) for start in range(12)]
    return np.concatenate(parts).astype(np.uint16)


EVALUATOR = MixtureEvaluator(Fixed(), VOCAB, BOS)


def test_every_distribution_sums_to_one_and_holds_the_score() -> None:
    tokens = stream()
    positions = list(range(1, len(tokens)))
    trace = EVALUATOR.score(tokens, positions)
    for position in positions:
        assert np.exp(trace.log_probs[position]).sum() == pytest.approx(1.0, abs=1e-12)
        assert -trace.log_probs[position][tokens[position]] == pytest.approx(trace.nll[position - 1], abs=1e-12)


def test_a_token_changes_nothing_before_it_nor_its_own_distribution() -> None:
    tokens = stream()
    position = 200
    other = tokens.copy()
    other[position] = (int(tokens[position]) + 1 - 3) % (VOCAB - 3) + 3
    before, after = EVALUATOR.score(tokens, [position]), EVALUATOR.score(other, [position])
    np.testing.assert_array_equal(before.nll[: position - 1], after.nll[: position - 1])
    np.testing.assert_array_equal(before.log_probs[position], after.log_probs[position])
    assert not np.array_equal(before.nll[position:], after.nll[position:])


def test_repetition_is_learned() -> None:
    tokens = stream()
    gain = Fixed().score(tokens).nll - EVALUATOR.score(tokens).nll
    assert gain[len(gain) // 2 :].mean() > 0.5


def test_back_off_by_hand() -> None:
    model = Backoff(1, vocab_size=4)
    for contexts, token in (([0], 2), ([0, 2], 3), ([0, 3], 2)):
        model.learn(contexts, token)
    unigram_3 = (1 - DISCOUNT + DISCOUNT * 2 / 4) / 3
    assert model.probability([0, 2], 3) == (pytest.approx((1 - DISCOUNT + DISCOUNT * 1 * unigram_3) / 1), 2)
    assert model.probability([0, 9], 3) == (pytest.approx(unigram_3), 1)
    assert model.distribution([0, 2])[3] == pytest.approx(model.probability([0, 2], 3)[0])
