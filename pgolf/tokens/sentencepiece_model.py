"""A reader of SentencePiece models: the pieces and their text, which is all that scoring needs of a tokenizer."""

from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import sentencepiece as spm

from pgolf.errors import PgolfError
from pgolf.tokens.shards import TOKEN_LIMIT

SPACE_MARK = "\u2581"
CHALLENGE_OPERATORS, LEADING_OPERATORS = 0xE001, 0xE011
"""Code points of the first of the four operators in the two dialects of CaseOps."""


class Pieces:
    """A SentencePiece model, read."""

    def __init__(self, proto: bytes, name: str = "tokenizer") -> None:
        """Raises PgolfError when `proto` is not a SentencePiece model, has no BOS, or has more pieces than uint16
        holds."""
        self.sp = spm.SentencePieceProcessor()
        try:
            self.sp.LoadFromSerializedProto(proto)
        except (RuntimeError, ValueError) as error:  # its message may hold bytes that are not UTF-8
            raise PgolfError(
                f"{name} is not a SentencePiece model; name a .model file that SentencePiece wrote"
            ) from error
        self.proto, self.name = proto, name
        self.vocab_size: int = self.sp.vocab_size()
        self.bos_id: int = self.sp.bos_id()
        if self.vocab_size > TOKEN_LIMIT:
            raise PgolfError(
                f"{name} has {self.vocab_size} pieces; at most {TOKEN_LIMIT}, because shards store tokens as uint16"
            )
        if self.bos_id < 0:
            raise PgolfError(f"{name} has no BOS piece, which every document starts with; train one with bos_id=1")
        try:
            self.pieces  # noqa: B018 - read now: a damaged model loads, and fails when a piece is asked for
        except (ValueError, IndexError, RuntimeError) as error:
            raise PgolfError(f"{name} is damaged: its pieces cannot be read ({error})") from error

    @classmethod
    def open(cls, path: Path) -> Self:
        try:
            return cls(path.read_bytes(), str(path))
        except OSError as error:
            raise PgolfError(f"cannot read the tokenizer {path}: {error.strerror or error}") from error

    @cached_property
    def operators(self) -> tuple[str, ...]:
        """The four operator characters of the CaseOps dialect that has them as pieces; none for a plain tokenizer."""
        unknown = self.sp.unk_id()
        for first in (CHALLENGE_OPERATORS, LEADING_OPERATORS):
            symbols = tuple(chr(first + index) for index in range(4))
            if all(self.sp.piece_to_id(symbol) != unknown for symbol in symbols):
                return symbols
        return ()

    @cached_property
    def pieces(self) -> tuple[bytes, ...]:
        """The bytes of text of each token; empty for control, unknown and unused pieces."""
        found = []
        for token in range(self.vocab_size):
            piece = self.sp.id_to_piece(token)
            if self.sp.is_control(token) or self.sp.is_unknown(token) or self.sp.is_unused(token):
                found.append(b"")
            elif self.sp.is_byte(token):
                found.append(bytes([int(piece[3:5], 16)]))
            else:
                found.append(piece.replace(SPACE_MARK, " ").encode())
        return tuple(found)

    @cached_property
    def scores(self) -> np.ndarray | None:
        """float64 (vocab_size,), by whose sum over the pieces a unigram model cuts a text; None for other models."""
        try:
            self.sp.nbest_encode("a", nbest_size=2)  # which only a unigram model can do
        except RuntimeError:
            return None
        return np.array([self.sp.get_score(token) for token in range(self.vocab_size)])

    @cached_property
    def lengths(self) -> np.ndarray:
        """Bytes of each piece: int64 (vocab_size,)."""
        return np.array([len(piece) for piece in self.pieces], np.int64)
