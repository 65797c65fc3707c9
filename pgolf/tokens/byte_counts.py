"""Bytes of text per token; everything that counts bytes uses this module.

On documents the answer is exact: the counts of a document's tokens sum to its length in bytes, whatever the tokenizer
does to the text (`document_bytes`, kept as the sidecar `val_bytes_*`). On the challenge's shards no documents
exist and a table per piece is the definition (`ByteTable`; openai/parameter-golf, `build_sentencepiece_luts`). It
differs from the challenge's table in two things that the challenge's own plain tokenizers do not have, where the
original counts bytes that no text has: every space mark inside a piece is one byte (there the first is, the others are
three), and CaseOps operators have none. `faults` names what makes a table, or the field's other ways of counting, wrong
for a given tokenizer.
"""

from dataclasses import dataclass

import numpy as np

from pgolf.tokens.sentencepiece_model import SPACE_MARK, Pieces
from pgolf.tokens.shards import TokenStream
from pgolf.tokens.tokenizer import MAX_TOKEN_BYTES, Tokenizer


@dataclass(frozen=True, eq=False)
class ByteTable:
    """Bytes per piece. The leading space is counted separately: it exists only after a token that is not a boundary."""

    base: np.ndarray  # (vocab_size,) int64, bytes without the leading space
    leading_space: np.ndarray  # (vocab_size,) bool
    boundary: np.ndarray  # (vocab_size,) bool: control, unknown and unused pieces

    @classmethod
    def from_tokenizer(cls, tokenizer: Pieces) -> "ByteTable":
        base = tokenizer.lengths.copy()
        leading = np.zeros(len(base), bool)
        boundary = np.zeros(len(base), bool)
        for token in range(len(base)):
            sp = tokenizer.sp
            if sp.is_control(token) or sp.is_unknown(token) or sp.is_unused(token):
                boundary[token] = True
            elif not sp.is_byte(token):
                piece = sp.id_to_piece(token)
                leading[token] = piece.startswith(SPACE_MARK)
                base[token] -= sum(len(symbol.encode()) * piece.count(symbol) for symbol in tokenizer.operators)
        return cls(base - leading, leading, boundary)

    def count(self, tokens: np.ndarray, previous: int | None = None) -> np.ndarray:
        """Bytes of each token: int64 (n,). `previous` is the token before the first; None: a boundary.

        Tokens beyond the table (a padded vocabulary) are boundaries of no bytes.
        """
        inside = np.minimum(tokens, len(self.base)).astype(np.int64)
        base, leading = np.append(self.base, 0), np.append(self.leading_space, False)
        boundary = np.append(self.boundary, True)
        before = np.ones(len(tokens), bool)
        before[1:] = boundary[inside[:-1]]
        if previous is not None and len(tokens):
            before[0] = boundary[min(previous, len(self.base))]
        return base[inside] + (leading[inside] & ~before)

    def count_stream(self, stream: TokenStream) -> np.ndarray:
        """Bytes of every token of a stream: int64 (n,), in parts so that little else is held."""
        out = np.empty(len(stream), np.int64)
        step = 1 << 22
        for start in range(0, len(stream), step):
            previous = int(stream[start - 1 : start][0]) if start else None
            out[start : start + step] = self.count(stream[start : start + step], previous)
        return out


def document_bytes(tokenizer: Tokenizer, document: bytes, tokens: np.ndarray) -> np.ndarray:
    """Original bytes of each token of one document, BOS (0) first: uint16 (n,), the sum is the document's length.

    Where decoding gives the text back, a token has the bytes it decodes to; where it does not, SentencePiece's
    alignment decides. CaseOps operators have none.
    """
    text = tokenizer.transform(document)
    ends = np.cumsum(tokenizer.lengths[tokens])
    if not _spells(tokenizer, tokens, text):
        ends = tokenizer.ends(document, tokens)
    if tokenizer.caseops is not None:
        ends = np.concatenate([[0], np.cumsum(tokenizer.caseops.original_bytes(text))])[ends]
    counts = np.diff(ends, prepend=0)
    if len(counts) > 1 and counts.max() > MAX_TOKEN_BYTES:
        counts = _spread(counts)
    assert counts[0] == 0, "BOS has no bytes"
    assert counts.sum() == len(document), "the bytes of a document do not add up"
    return counts.astype(np.uint16)


def changed_bytes(original: bytes, decoded: bytes) -> int:
    """Lower bound of the bytes to replace, add or remove to turn one text into the other.

    Counted by byte value, ignoring order, which is exact for normalization and needs no alignment.
    """
    if original == decoded:
        return 0
    before, after = (np.bincount(np.frombuffer(text, np.uint8), minlength=256) for text in (original, decoded))
    change = after - before
    # A pure reordering changes no count; it is a difference all the same.
    return max(int(change[change > 0].sum()), int(-change[change < 0].sum()), 1)


def faults(tokenizer: Tokenizer) -> list[str]:
    """Faults of a tokenizer that affect byte counts, one sentence each; empty if there are none.

    The names are those under which the field met them (openai/parameter-golf #755, #897, #1271, #1604, #1734, #2071).
    """
    sp = tokenizer.sp
    unknown = sp.unk_id()
    pieces = [sp.id_to_piece(token) for token in range(tokenizer.vocab_size)]
    found = []
    if sp.piece_to_id(SPACE_MARK) == unknown:
        found.append("no space piece: a lone space falls back to three byte pieces and is counted as three bytes")
    inner = sum(SPACE_MARK in piece[1:] for piece in pieces)
    if inner:
        found.append(f"inner space marks: {inner} pieces hold more than one, each counted as three bytes by the table")
    if tokenizer.caseops is not None:
        found.append("case operators: a table counts three bytes for each, only a byte sidecar is exact")
    if tokenizer.byte_tokens is None:
        found.append("no byte fallback: unknown characters are lost and counted as nothing")
    probes = {
        "white space": " a  b\n\nc ",
        "compatibility characters": "ﬁ½²",
        "letter case": "The NASA ß",
    }
    for what, probe in probes.items():
        if (
            tokenizer.byte_tokens is not None
            and tokenizer.decode(tokenizer.encode([probe.encode()])[0]) != probe.encode()
        ):
            found.append(f"lossy normalization: {what} does not come back from the tokens")
    if tokenizer.dummy_prefix:
        found.append("dummy prefix: a space is put before every document and would be counted as one of its bytes")
    return found


def table_faults(tokenizer: Tokenizer, table: np.ndarray) -> list[str]:
    """Faults of another program's table of bytes per token, int (vocab_size,) without the byte of a leading space.

    Such tables come with scores to be checked; each sentence names one of the field's known faults with an example.
    """
    exact = ByteTable.from_tokenizer(tokenizer)
    found = []
    wrong = np.flatnonzero(table[: len(exact.base)] != exact.base[: len(table)])
    kinds = {
        "control tokens with length": wrong[exact.boundary[wrong]],
        "pre-credited spaces (counted twice where the space is added)": wrong[
            exact.leading_space[wrong] & (table[wrong] == exact.base[wrong] + 1)
        ],
        "byte tokens longer than one byte": np.array(
            [token for token in wrong if tokenizer.sp.is_byte(int(token))], np.int64
        ),
    }
    named: set[int] = set()
    for name, tokens in kinds.items():
        if len(tokens):
            token = int(tokens[0])
            piece = tokenizer.sp.id_to_piece(token)
            found.append(
                f"{name}: {len(tokens)} tokens, first {token} ({piece}): {table[token]}, not {exact.base[token]}"
            )
            named.update(tokens.tolist())
    rest = [int(token) for token in wrong if int(token) not in named]
    if rest:
        piece = tokenizer.sp.id_to_piece(rest[0])
        found.append(
            f"other lengths: {len(rest)} tokens, first {rest[0]} ({piece}): {table[rest[0]]}, not {exact.base[rest[0]]}"
        )
    return found


def _spells(tokenizer: Tokenizer, tokens: np.ndarray, text: bytes) -> bool:
    return b"".join([tokenizer.pieces[token] for token in tokens.tolist()]) == text


def _spread(counts: np.ndarray) -> np.ndarray:
    """Carry the excess over a uint16 to the next tokens, and the rest at the end to earlier ones."""
    for direction in (1, -1):
        order = counts[1:][::direction]  # a view: BOS keeps its zero
        carried = 0
        for index in range(len(order)):
            total = int(order[index]) + carried
            order[index] = min(total, MAX_TOKEN_BYTES)
            carried = total - int(order[index])
        if direction == 1:
            order[-1] += carried
    return counts
