"""The mixture: normalized, causal, and worth something on text that repeats itself."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from pgolf.evaluate.evaluator import Trace
from pgolf.evaluate.mixture import (
    DISCOUNT,
    DOCUMENT_ORDER,
    FLOOR,
    GLOBAL_ORDER,
    RATE,
    START,
    MixtureEvaluator,
)

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


class Backoff:
    """The statistics token by token, counts in dictionaries."""

    def __init__(self, order: int, vocab_size: int) -> None:
        self.order, self.vocab_size = order, vocab_size
        self._counts: dict[tuple[int, int], dict[int, int]] = {}
        self._totals: dict[tuple[int, int], int] = {}

    def probability(self, contexts: Sequence[int], token: int) -> tuple[float, int]:
        """Probability of one token, and how many context lengths had been seen, 0 to order + 1.

        contexts: by length k = 0..order, the last k tokens as one number; shorter near the beginning of a document.
        """
        p, matched = 1.0 / self.vocab_size, 0
        for key in enumerate(contexts):
            counts = self._counts.get(key)
            if counts is None:
                break
            total = self._totals[key]
            count = counts.get(token, 0)
            p = ((count - DISCOUNT if count else 0.0) + DISCOUNT * len(counts) * p) / total
            matched += 1
        return p, matched

    def distribution(self, contexts: Sequence[int]) -> np.ndarray:
        """The whole distribution, (vocab_size,) float64; agrees with `probability` for every token."""
        p = np.full(self.vocab_size, 1.0 / self.vocab_size)
        for key in enumerate(contexts):
            counts = self._counts.get(key)
            if counts is None:
                break
            p = DISCOUNT * len(counts) * p
            p[list(counts)] += np.array(list(counts.values())) - DISCOUNT
            p /= self._totals[key]
        return p

    def learn(self, contexts: Sequence[int], token: int) -> None:
        for key in enumerate(contexts):
            counts = self._counts.setdefault(key, {})
            counts[token] = counts.get(token, 0) + 1
            self._totals[key] = self._totals.get(key, 0) + 1


def contexts_of(ids: Sequence[int], position: int, begin: int) -> list[int]:
    """The last k tokens before a position as one number each, k = 0 .. GLOBAL_ORDER, not reaching before `begin`."""
    contexts, key = [0], 0
    for k in range(1, min(GLOBAL_ORDER, position - begin) + 1):
        key |= ids[position - k] << (16 * (k - 1))
        contexts.append(key)
    return contexts


def plainly(tokens: np.ndarray, trace: Trace) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Nats and wanted log-probabilities of the mixture, token by token."""
    stream, document = Backoff(GLOBAL_ORDER, VOCAB), Backoff(DOCUMENT_ORDER, VOCAB)
    weights: dict[tuple[int, int], list[float]] = {}
    ids = tokens.tolist()
    stream.learn([0], ids[0])
    mixed, log_probs, begin = np.empty(len(trace.nll)), {}, 0
    for position in range(1, len(ids)):
        token = ids[position]
        if ids[position - 1] == BOS:
            document, begin = Backoff(DOCUMENT_ORDER, VOCAB), position - 1
        contexts = contexts_of(ids, position, begin)
        p_stream, seen_stream = stream.probability(contexts, token)
        p_document, seen_document = document.probability(contexts[: DOCUMENT_ORDER + 1], token)
        held = weights.setdefault((seen_stream, seen_document), list(START))
        experts = (math.exp(-trace.nll[position - 1]), p_stream, p_document)
        p = sum(weight * expert for weight, expert in zip(held, experts, strict=True))
        mixed[position - 1] = -math.log(p)
        vector = held[0] * np.exp(trace.log_probs[position]) + held[1] * stream.distribution(contexts)
        log_probs[position] = np.log(vector + held[2] * document.distribution(contexts[: DOCUMENT_ORDER + 1]))
        grown = [max(w, FLOOR) * math.exp(RATE * e / p) for w, e in zip(held, experts, strict=True)]
        held[:] = [value / sum(grown) for value in grown]
        stream.learn(contexts, token)
        document.learn(contexts[: DOCUMENT_ORDER + 1], token)
    return mixed, log_probs


EVALUATOR = MixtureEvaluator(Fixed(), VOCAB, BOS)


@pytest.mark.parametrize("begins_with_bos", [True, False])
def test_the_mixture_is_the_plain_one(begins_with_bos: bool) -> None:
    tokens = stream() if begins_with_bos else stream()[1:]
    positions = list(range(1, len(tokens)))
    expected, distributions = plainly(tokens, Fixed().score(tokens, positions))
    found = EVALUATOR.score(tokens, positions)
    np.testing.assert_allclose(found.nll, expected, rtol=1e-12)
    for position in positions:
        np.testing.assert_allclose(found.log_probs[position], distributions[position], rtol=1e-12)


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
