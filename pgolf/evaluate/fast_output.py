"""Fast weights on the output: biases on the logits that learn from every single token as soon as it is scored.

Each order k = 0, 1, 2 has a bias vector per context of the last k tokens, all zero when a document begins. The logits
get the three vectors of the current contexts added; after the token is scored, the three descend its loss by AdaGrad,
so that a word counts fully the first time it comes and little the tenth. It is an output layer over one-hot contexts,
trained at test time: a softmax over the vocabulary as before, reading nothing but logits and scored tokens, at some
thirty microseconds a token. The adapters per document of record 2026-04-17 (PR #1530) are its slow relative, the
dynamic bias and cache of arXiv 1612.04426 its oldest one.
"""

import math

import numpy as np

from pgolf.config.ttt import TttConfig

FLOORS = (3.0, 0.3, 0.3)
"""Added to the squared gradients, by order: what seldom comes needs no caution. Chosen on held-out train text."""
ROWS = 2048
"""Contexts held per order and document; one that falls on another's row takes it over from zero."""


class FastOutput:
    """The biases along a stream. They hold `orders * 2 * ROWS * vocab_size` floats, whatever the documents' length."""

    def __init__(self, vocab_size: int, bos_id: int, settings: TttConfig) -> None:
        orders = len(settings.output_lr)
        self._bos_id = bos_id
        self._rates = np.array(settings.output_lr, np.float32)[:, None]
        self._floors = np.array(FLOORS[:orders], np.float32)[:, None]
        self._bias = np.zeros((orders, ROWS, vocab_size), np.float32)
        self._squares = np.zeros((orders, ROWS, vocab_size), np.float32)
        self._owner: list[dict[int, int]] = [{} for _ in range(orders)]  # by order: row -> context
        self._recent = [0] * max(0, orders - 1)  # the last tokens, the latest first, none from before the document
        self._orders = np.arange(orders)

    def score(
        self, previous: np.ndarray, targets: np.ndarray, logits: np.ndarray, wanted: set[int]
    ) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        """Score a stretch of the stream token by token, learning after each.

        previous, targets: (n,) ids, the token before each target and the target; logits: (n, vocab_size) float32;
        wanted: rows whose distributions are wanted. Returns (n,) float64 nats and log-probabilities by row.
        """
        nll = np.empty(len(targets))
        found: dict[int, np.ndarray] = {}
        for row, (before, target) in enumerate(zip(previous.tolist(), targets.tolist(), strict=True)):
            rows = self._orders, self._rows(before)
            bias = self._bias[rows]  # (orders, vocab_size)
            z = logits[row] + bias.sum(axis=0)
            z -= z.max()
            p = np.exp(z)
            total = float(p.sum())
            nll[row] = math.log(total) - float(z[target])
            if row in wanted:
                exact = z.astype(np.float64)
                found[row] = exact - math.log(np.exp(exact).sum())
            p /= -total
            p[target] += 1.0  # the negative gradient of the loss by the logits
            squares = self._squares[rows] + p * p
            self._squares[rows] = squares
            self._bias[rows] = bias + self._rates * p / np.sqrt(squares + self._floors)
        return nll, found

    def _rows(self, before: int) -> list[int]:
        """The row of each order's context now that `before` has come, cleared where it was another's."""
        if before == self._bos_id:
            self._owner = [{} for _ in self._owner]
            self._recent = [0] * len(self._recent)
        self._recent = [before, *self._recent][: len(self._recent)]
        rows, context = [], 0
        for order, owner in enumerate(self._owner):
            if order:
                context = context * 65_536 + self._recent[order - 1] + 1
            row = context * 0x9E3779B1 % 0xFFFFFFFB % ROWS
            if owner.get(row) != context:
                owner[row] = context
                self._bias[order, row] = 0.0
                self._squares[order, row] = 0.0
            rows.append(row)
        return rows
