"""Fast weights on the output: biases on the logits that learn from every single token as soon as it is scored.

A bias vector belongs to every context of the last k tokens, k = 0 to 3, zero when it is first met. The logits get the
vectors of the current contexts added, each times a scale; after the token is scored, vectors and scales descend its
loss by AdaGrad, so that a word counts fully the first time it comes and little the tenth. Those of the document are
forgotten with it, those of the stream stay. Scales are kept by how often the context was met, so that what a frequent
context is worth is learned as well. But for the empty context a vector is held where a token has followed only:
elsewhere it stays zero.

It is an output layer over one-hot contexts, trained at test time: a softmax over the vocabulary as before, reading
nothing but logits and scored tokens, in 0.1 ms a token. The adapters per document of record 2026-04-17 (PR #1530) are
its slow relative, the dynamic bias and cache of arXiv 1612.04426 its oldest one.
"""

import math
from collections.abc import Sequence

import numpy as np

from pgolf.config.ttt import TttConfig

FLOOR = 1.0
"""Added to the squared gradients; this, the scales' rate and the rates were chosen on held-out train text."""
SCALE_RATE = 0.2
SCALE_FLOOR = 1e-3
BUCKETS = 10
"""Kinds of contexts by times met: 0, 1, 2 to 3, 4 to 7, ..."""
ROOM = 1 << 24
"""Weights held at most; when they are used up, what is new is not learned."""


class FastOutput:
    """The biases along a stream. What they hold grows with it, by at most one weight per token and context length."""

    def __init__(self, vocab_size: int, bos_id: int, settings: TttConfig) -> None:
        self._bos_id = bos_id
        self._document = _Biases(vocab_size, range(len(settings.output_lr)), settings.output_lr)
        self._stream = _Biases(vocab_size, range(1, 4), settings.output_stream_lr)
        self._recent: tuple[int, ...] = ()  # the last tokens, the latest first, none from before the document

    def score(
        self, previous: np.ndarray, targets: np.ndarray, logits: np.ndarray, wanted: set[int]
    ) -> tuple[np.ndarray, np.ndarray, dict[int, np.ndarray]]:
        """Score a stretch of the stream token by token, learning after each.

        previous, targets: (n,) ids, the token before each target and the target; logits: (n, vocab_size) float32;
        wanted: rows whose distributions are wanted. Returns (n,) float64 nats, the gradients of their sum by the
        logits, and log-probabilities by row.
        """
        nll, slopes = np.empty(len(targets)), np.empty_like(logits)
        found: dict[int, np.ndarray] = {}
        for row, (before, target) in enumerate(zip(previous.tolist(), targets.tolist(), strict=True)):
            if before == self._bos_id:
                self._document.forget()
                self._recent = ()
            self._recent = (before, *self._recent[:2])
            z = logits[row] + self._document.look_up(self._recent) + self._stream.look_up(self._recent)
            z -= z.max()
            p = np.exp(z)
            total = float(p.sum())
            nll[row] = math.log(total) - float(z[target])
            if row in wanted:
                found[row] = z - math.log(total)
            p /= total
            p[target] -= 1.0
            slopes[row] = p
            self._document.learn(p, target)
            self._stream.learn(p, target)
        return nll, slopes, found


class _Biases:
    """Biases for contexts of several lengths, each with a rate."""

    def __init__(self, vocab_size: int, lengths: Sequence[int], rates: Sequence[float]) -> None:
        self._vocab_size, self._lengths, self._rates = vocab_size, lengths[: len(rates)], np.array(rates)
        self._numbers = np.arange(len(rates))
        self._scales = np.ones((len(rates), BUCKETS))
        self._scale_squares = np.full((len(rates), BUCKETS), SCALE_FLOOR)
        self._tokens = np.arange(vocab_size)  # of each weight
        self._weights, self._squares = np.zeros(vocab_size), np.zeros(vocab_size)
        self.forget()

    def forget(self) -> None:
        """No context has been met; scales stay."""
        every = np.arange(self._vocab_size)
        self._places: dict[tuple[int, ...], np.ndarray] = {(): every}  # where a context's weights are
        self._met: dict[tuple[int, ...], int] = {}
        self._used = len(every)
        self._weights[every] = self._squares[every] = 0.0

    def look_up(self, recent: tuple[int, ...]) -> np.ndarray:
        """The sum of the biases for the last tokens `recent`, (vocab_size,) float64."""
        self._contexts = [recent[:length] for length in self._lengths if length <= len(recent)]
        none = self._numbers[:0]
        held = [self._places.get(context, none) for context in self._contexts]
        met = [min(self._met.get(context, 0).bit_length(), BUCKETS - 1) for context in self._contexts]
        self._kinds = self._numbers[: len(held)], met
        self._owner = np.repeat(self._numbers[: len(held)], [len(places) for places in held])  # (k,) of each weight
        self._held = np.concatenate([none, *held])  # (k,)
        self._following = self._tokens[self._held]
        self._values = self._weights[self._held]
        scaled = self._scales[self._kinds][self._owner] * self._values
        return np.bincount(self._following, scaled, self._vocab_size)

    def learn(self, slope: np.ndarray, target: int) -> None:
        """Descend the loss of the token that came where `look_up` was last; slope: its gradient by the logits."""
        count = len(self._contexts)
        slopes = slope[self._following]
        if count:
            down = np.bincount(self._owner, slopes * self._values, count)
            self._scale_squares[self._kinds] += down * down
            self._scales[self._kinds] -= SCALE_RATE * down / np.sqrt(self._scale_squares[self._kinds])
        self._squares[self._held] += slopes * slopes
        steps = self._rates[self._owner] * slopes / np.sqrt(self._squares[self._held] + FLOOR)
        self._weights[self._held] = self._values - steps
        known = np.bincount(self._owner[self._following == target], minlength=count)
        for number, context in enumerate(self._contexts):
            self._met[context] = self._met.get(context, 0) + 1
            if not known[number] and self._used < ROOM:
                square = float(slope[target]) ** 2
                self._append(context, target, -self._rates[number] * slope[target] / math.sqrt(square + FLOOR), square)

    def _append(self, context: tuple[int, ...], token: int, weight: float, square: float) -> None:
        if self._used == len(self._tokens):
            self._tokens = np.resize(self._tokens, 2 * self._used)
            self._weights = np.resize(self._weights, 2 * self._used)
            self._squares = np.resize(self._squares, 2 * self._used)
        place, self._used = self._used, self._used + 1
        self._tokens[place], self._weights[place], self._squares[place] = token, weight, square
        self._places[context] = np.append(self._places.get(context, self._numbers[:0]), place)
