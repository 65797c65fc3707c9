"""CaseOps: letter case moved out of words into operator characters, so that `The` and `the` share their pieces.

A bijection on bytes (record 2026-04-18, openai/parameter-golf #1729). A maximal run of ASCII letters is lower-cased
behind TITLE (first letter upper), ALLCAPS (two or more, all upper) or CAPNEXT (before each later capital of a mixed
run); an operator character in the text itself is escaped with ESC. There are two dialects with different
operator characters, so that the tokenizer model identifies its dialect:

- `challenge` (U+E001 to U+E004): the operator comes right before the letters, as in the challenge's published
  tokenizer. Between a space and its word it keeps SentencePiece from using the word's usual piece `▁word`.
- `leading` (U+E011 to U+E014): TITLE and ALLCAPS come before the space that precedes the word, so the word keeps its
  usual piece. pgolf's own CaseOps tokenizers use it.

Bytes are counted on the original text: an operator has none, every other byte of the transformed text one.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pgolf.tokens.sentencepiece_model import CHALLENGE_OPERATORS, LEADING_OPERATORS

_TITLE, _ALLCAPS, _CAPNEXT, _ESC = range(4)
_UPPER = re.compile(rb"[A-Z]")


@dataclass(frozen=True)
class CaseOps:
    """One dialect. `encode` never fails; `decode` raises ValueError for an operator in a wrong place."""

    name: str
    first: int
    """Code point of TITLE; ALLCAPS, CAPNEXT and ESC follow it."""
    leading: bool
    """True if TITLE and ALLCAPS come before the space in front of the word."""

    @cached_property
    def symbols(self) -> tuple[str, ...]:
        """The four operator characters, in the order TITLE, ALLCAPS, CAPNEXT, ESC."""
        return tuple(chr(self.first + index) for index in range(4))

    @cached_property
    def _bytes(self) -> tuple[bytes, ...]:
        return tuple(symbol.encode() for symbol in self.symbols)

    @cached_property
    def _any(self) -> bytes:
        return b"(?:" + b"|".join(self._bytes) + b")"

    @cached_property
    def _find(self) -> re.Pattern[bytes]:
        space = b" ?" if self.leading else b""
        return re.compile(rb"(" + space + rb")(?<![A-Za-z])([a-z]*+[A-Z][A-Za-z]*)|" + self._any)

    @cached_property
    def _find_back(self) -> re.Pattern[bytes]:
        title, allcaps, capnext, escape = self._bytes
        space = b" ?" if self.leading else b""
        parts = (title + b"(" + space + b"[a-z])", allcaps + b"(" + space + b"[a-z]+)", capnext + b"([a-z])")
        return re.compile(b"|".join((*parts, escape + b"(" + self._any + b")", self._any)))

    def encode(self, text: bytes) -> bytes:
        return self._find.sub(self._transform, text)

    def encode_batch(self, texts: Sequence[bytes]) -> list[bytes]:
        """`encode` of each text, at some 100 MB/s: all of them as one array, but for those with operators inside."""
        odd = [self._bytes[_TITLE][:2] in text for text in texts]
        even = [text for text, is_odd in zip(texts, odd, strict=True) if not is_odd]
        fast = iter(self._encode_arrays(even))
        return [self.encode(text) if is_odd else next(fast) for text, is_odd in zip(texts, odd, strict=True)]

    def _encode_arrays(self, texts: Sequence[bytes]) -> list[bytes]:
        ends = np.cumsum([len(text) for text in texts])
        source = np.frombuffer(b"".join(texts), np.uint8)
        n = len(source)
        if not n:
            return list(texts)
        upper = (source - np.uint8(0x41)) < 26
        lower = source | (upper.view(np.uint8) << 5)
        letter = np.zeros(n + 2, bool)  # a non-letter on either side
        letter[1:-1] = (lower - np.uint8(0x61)) < 26
        begins = np.zeros(n + 1, bool)  # where a text begins; letters on its two sides are two words
        begins[0] = begins[ends] = True
        first = np.flatnonzero(letter[1:] & (~letter[:-1] | begins))
        first = first[first < n]
        last = np.flatnonzero(letter[:-1] & (~letter[1:] | begins))  # one past the last letter
        uppers = np.concatenate([[0], np.cumsum(upper, dtype=np.int64)])
        capitals = uppers[last] - uppers[first]
        some = capitals > 0
        first, length, capitals = first[some], (last - first)[some], capitals[some]
        shout = (capitals == length) & (length > 1)
        title = ~shout & upper[first]
        headed = first[shout | title]
        operator = np.where(shout[shout | title], _ALLCAPS, _TITLE)
        if self.leading:
            headed = headed - ((headed > 0) & (source[headed - 1] == 0x20) & ~begins[headed])
        # Every capital that no TITLE or ALLCAPS accounts for.
        mixed = upper.copy()
        mixed[first[title]] = False
        whole = np.zeros(n + 1, np.int8)
        whole[first[shout]] += 1
        whole[(first + length)[shout]] -= 1
        mixed &= np.cumsum(whole[:-1], dtype=np.int8) == 0
        single = np.flatnonzero(mixed)
        places = np.concatenate([headed, single])
        operators = np.concatenate([operator, np.full(len(single), _CAPNEXT)])
        order = np.argsort(places, kind="stable")
        places, operators = places[order], operators[order]
        out = np.empty(n + 3 * len(places), np.uint8)
        inserted = places + 3 * np.arange(len(places))
        free = np.ones(len(out), bool)
        for offset in range(3):
            codes = np.array([symbol[offset] for symbol in self._bytes], np.uint8)
            out[inserted + offset] = codes[operators]
            free[inserted + offset] = False
        out[free] = lower
        cuts = ends + 3 * np.searchsorted(places, ends)
        data = out.tobytes()
        return [data[start:stop] for start, stop in zip([0, *cuts[:-1].tolist()], cuts.tolist(), strict=True)]

    def decode(self, text: bytes, drop_stray: bool = False) -> bytes:
        """drop_stray: leave out operators in a wrong place, which a model may write, in place of raising ValueError."""
        return self._find_back.sub(_restore_or_drop if drop_stray else _restore, text)

    def original_bytes(self, text: bytes) -> np.ndarray:
        """For each byte of the transformed text, the number of original bytes it accounts for, 0 or 1: uint8
        (len(text),)."""
        weight = np.ones(len(text), np.uint8)
        size = len(self._bytes[_ESC])
        literal = -1
        for match in re.finditer(self._any, text):
            if match.start() != literal:
                weight[match.start() : match.end()] = 0
                if match.group() == self._bytes[_ESC]:
                    literal = match.start() + size
        return weight

    def _transform(self, match: re.Match[bytes]) -> bytes:
        word = match.group(2)
        if word is None:
            return self._bytes[_ESC] + match.group()
        lower: bytes = word.lower()
        if len(word) > 1 and word.isupper():
            return self._bytes[_ALLCAPS] + match.group(1) + lower
        start = 0
        before = match.group(1)
        if word[0] < 0x61:
            before, start = self._bytes[_TITLE] + before, 1
        if lower[start:] == word[start:]:
            return before + lower
        rest = _UPPER.sub(lambda capital: self._bytes[_CAPNEXT] + capital.group().lower(), word[start:])
        return before + lower[:start] + rest


def _restore(match: re.Match[bytes]) -> bytes:
    title, allcaps, capnext, literal = match.groups()
    if literal is not None:
        return bytes(literal)
    letters = title or allcaps or capnext
    if letters is None:
        raise ValueError(f"case operator in a wrong place, byte {match.start()}")
    return bytes(letters.upper())


def _restore_or_drop(match: re.Match[bytes]) -> bytes:
    return _restore(match) if any(match.groups()) else b""


CHALLENGE = CaseOps("challenge", CHALLENGE_OPERATORS, leading=False)
LEADING = CaseOps("leading", LEADING_OPERATORS, leading=True)
DIALECTS = (CHALLENGE, LEADING)
