"""Tokens that a unigram tokenizer never writes after the pieces of a word so far.

It writes the cut of the highest sum of scores, every stretch of which is the highest of its own text. So a token cannot
come if some other cut of the word so far and the token together is better: one with a piece across the boundary, which
begins somewhere in the word and ends inside the token. A word begins with the last piece that begins with a space;
where pieces hold spaces inside, that finds fewer. Of two cuts that score alike (`!` and `!!`) either may come, and sums
may be off by rounding.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

ALIKE = 0.05
"""Difference of scores that may be rounding: SentencePiece sums them in float32, 0.03 apart at 2^18, a
document of 40,000 pieces."""
REACH = 8  # pieces of a word that are looked at; longer ones lose their beginning
MOST_WORDS = 1 << 16
"""Words whose followers are kept, 0.6 KB each at 4,096 pieces."""


class Words:
    """See `Barred`. What can follow a word is found when the word first comes."""

    reach = REACH

    def __init__(self, texts: Mapping[int, str], scores: np.ndarray, device: torch.device) -> None:
        """texts: of all pieces that are text, by token; scores: (vocab_size,)."""
        self._texts, self._scores, self._device = texts, scores, device
        self._size = len(scores)
        self._tokens = {text: token for token, text in texts.items()}
        self._longest = max(map(len, self._tokens), default=0)
        self._starting: dict[str, list[str]] = {}  # pieces by every text that they begin with and that is shorter
        ends: dict[str, list[tuple[int, float]]] = {}
        own = np.full(self._size, np.inf)  # of a token's own piece; tokens that are no text always may come
        never = np.zeros(self._size, bool)
        for token, text in texts.items():
            own[token] = scores[token]
            never[token] = self._best(text)[-1] > scores[token] + ALIKE
            for length in range(1, len(text) + 1):
                ends.setdefault(text[:length], []).append((token, self._best(text[length:])[-1]))
                if length < len(text):
                    self._starting.setdefault(text[:length], []).append(text)
        self._own, self._never = own, never
        # Tokens by every text that they begin with, and the score of the best cut of what follows it.
        self._ends = {
            text: (np.array([token for token, _ in found]), np.array([score for _, score in found]))
            for text, found in ends.items()
        }
        self._across: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._known: dict[tuple[int, ...], np.ndarray] = {}

    def __call__(self, previous: Tensor) -> Tensor:
        rows = [self._after(self._word(row)) for row in previous.flatten(0, -2).tolist()]
        table = np.unpackbits(np.stack(rows), axis=1, count=self._size) if rows else np.zeros((0, self._size), np.uint8)
        return torch.from_numpy(table.view(bool)).view(*previous.shape[:-1], self._size).to(self._device)

    def __deepcopy__(self, _: object) -> "Words":
        return self  # what is kept depends on the pieces alone

    def _word(self, previous: list[int]) -> tuple[int, ...]:
        """The last of these tokens that can share a piece."""
        start = len(previous)
        while start > 0 and previous[start - 1] in self._texts:
            start -= 1
            if self._texts[previous[start]].startswith(" "):
                break
        return tuple(previous[start:])

    def _after(self, word: tuple[int, ...]) -> np.ndarray:
        """What cannot follow a word, as packed bits."""
        found = self._known.get(word)
        if found is None:
            text = "".join([self._texts[token] for token in word])
            best = self._best(text)
            across = np.full(self._size, -np.inf)
            for start in range(max(0, len(text) - self._longest), len(text)):
                if text[start:] in self._starting:
                    tokens, scores = self._crossing(text[start:])
                    across[tokens] = np.maximum(across[tokens], best[start] + scores)
            found = np.packbits(self._never | (across > best[-1] + self._own + ALIKE))
            if len(self._known) >= MOST_WORDS:
                self._known.clear()
            self._known[word] = found
        return found

    def _crossing(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Tokens such that a piece can lie across the boundary of `text` and them; score of the best such cut."""
        found = self._across.get(text)
        if found is None:
            best = np.full(self._size, -np.inf)
            for piece in self._starting[text]:
                if piece[len(text) :] in self._ends:
                    tokens, rest = self._ends[piece[len(text) :]]
                    best[tokens] = np.maximum(best[tokens], self._scores[self._tokens[piece]] + rest)
            tokens = np.flatnonzero(best > -np.inf)
            found = self._across[text] = tokens, best[tokens]
        return found

    def _best(self, text: str) -> list[float]:
        """Score of the best cut of the first 0, 1, ... characters of a text."""
        best = [0.0]
        for end in range(1, len(text) + 1):
            starts = range(max(0, end - self._longest), end)
            scores = [
                best[start] + self._scores[self._tokens[text[start:end]]]
                for start in starts
                if text[start:end] in self._tokens
            ]
            best.append(float(max(scores, default=-np.inf)))
        return best
