"""A model mixed with causal statistics of the tokens already scored: valid by construction, reported apart.

Three experts give a whole, normalized distribution each: the model, an n-gram back-off model over everything scored
so far, and one over the current document alone (interpolated absolute discounting, Chen and Goodman 1999). Their
mixture is convex, so it sums to one whatever the weights are. The weights belong to how long a context each n-gram
model found, which is known before the target, and are learned online by exponentiated gradient from past targets
only. Unlike the hashed caches of the field (challenge issue #886, PR #978) no expert is evaluated for the target alone
and nothing collides: contexts are exact.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pgolf.errors import PgolfError
from pgolf.evaluate.evaluator import Evaluator, Trace

GLOBAL_ORDER = 4
"""Longest context, in tokens, of the statistics over the whole stream (64 bits of 16-bit tokens)."""
DOCUMENT_ORDER = 3
DISCOUNT = 0.5  # with the rate chosen on held-out train text; the usual 0.75 is for larger texts
RATE = 0.005  # of the mixture's weights
START = (0.96, 0.02, 0.02)  # weights before anything was seen: model, stream, document

SECONDS_A_TOKEN, BYTES_A_TOKEN = 15e-6, 750
"""Cost on one core, measured on 150,000 tokens of 8,192 pieces (benchmarks/results/gpu.md)."""
LIMIT_SECONDS = 600.0
"""The challenge's limit for an evaluation."""

FLOOR = 1e-4
"""Smallest weight before an update, so that an expert can come back."""


def check(tokens: int) -> None:
    """Raises PgolfError, before anything is scored, for a text whose mixture alone passes the limit."""
    seconds, gigabytes = tokens * SECONDS_A_TOKEN, tokens * BYTES_A_TOKEN / 1e9
    if seconds > LIMIT_SECONDS:
        raise PgolfError(
            f"the mixture of {tokens:,} tokens takes about {seconds:,.0f} s and {gigabytes:,.0f} GB on one core, after "
            f"the scoring and beyond the challenge's {LIMIT_SECONDS:.0f} s; score without evaluate.mixture"
        )


class Backoff:
    """Interpolated back-off over contexts of 0 to `order` tokens, learned one token at a time.

    With c the count of a token after a context, C the sum of the counts, n the number of different tokens seen, the
    probability is `(max(c - d, 0) + d n p_shorter) / C`; the empty context backs off to the uniform distribution.
    """

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


@dataclass(frozen=True)
class MixtureEvaluator:
    """Another evaluator's distribution mixed with the statistics of the tokens scored before."""

    base: Evaluator | None
    """None where only `mix` is used."""
    vocab_size: int
    bos_id: int

    def score(self, tokens: np.ndarray, positions: Sequence[int] = ()) -> Trace:
        """See `Evaluator.score`."""
        assert self.base is not None, "there is nothing to score with"
        return self.mix(tokens, self.base.score(tokens, positions))

    def mix(self, tokens: np.ndarray, trace: Trace) -> Trace:
        """The mixture's trace from the base evaluator's.

        Raises PgolfError when that did not score in stream order: the mixture learns from every token before.
        """
        if (np.diff(trace.order) < 0).any():
            raise PgolfError(
                "the mixture needs an evaluation in stream order; lora and phased take documents by length"
            )
        stream, document = Backoff(GLOBAL_ORDER, self.vocab_size), Backoff(DOCUMENT_ORDER, self.vocab_size)
        weights: dict[tuple[int, int], list[float]] = {}
        ids = tokens.tolist()
        stream.learn([0], ids[0])
        model = np.exp(-trace.nll).tolist()
        mixed = np.empty(len(model))
        log_probs: dict[int, np.ndarray] = {}
        begin = 0  # of the current document
        for position in range(1, len(ids)):
            token = ids[position]
            if ids[position - 1] == self.bos_id:
                document, begin = Backoff(DOCUMENT_ORDER, self.vocab_size), position - 1
            contexts = _contexts(ids, position, begin)
            p_stream, seen_stream = stream.probability(contexts, token)
            p_document, seen_document = document.probability(contexts[: DOCUMENT_ORDER + 1], token)
            held = weights.setdefault((seen_stream, seen_document), list(START))
            experts = (model[position - 1], p_stream, p_document)
            p = sum(weight * expert for weight, expert in zip(held, experts, strict=True))
            mixed[position - 1] = -math.log(p)
            if position in trace.log_probs:
                vector = held[0] * np.exp(trace.log_probs[position]) + held[1] * stream.distribution(contexts)
                vector += held[2] * document.distribution(contexts[: DOCUMENT_ORDER + 1])
                log_probs[position] = np.log(vector)
            # Exponentiated gradient on the log loss: each weight grows with its expert's share of the mixture.
            grown = [max(w, FLOOR) * math.exp(RATE * e / p) for w, e in zip(held, experts, strict=True)]
            total = sum(grown)
            held[:] = [value / total for value in grown]
            stream.learn(contexts, token)
            document.learn(contexts[: DOCUMENT_ORDER + 1], token)
        return replace(trace, nll=mixed, order=np.arange(len(mixed), dtype=np.int64), log_probs=log_probs)


def _contexts(ids: Sequence[int], position: int, begin: int) -> list[int]:
    """The last k tokens before a position as one number each, k = 0 .. GLOBAL_ORDER, not reaching before `begin`."""
    contexts, key = [0], 0
    for k in range(1, min(GLOBAL_ORDER, position - begin) + 1):
        key |= ids[position - k] << (16 * (k - 1))
        contexts.append(key)
    return contexts
