"""SentencePiece tokenizers: trained so that nothing is lost, or loaded as they are and checked.

Unusual here: documents are bytes and are decoded byte for byte. SentencePiece itself turns U+2581 (its own mark for
a space) into a space and invalid UTF-8 into U+FFFD; both are cut out of the text here and become byte pieces. A
tokenizer trained here normalizes nothing, adds no space in front and falls back to bytes, so every document is exact;
a loaded one may lose text (the challenge's normalizes with NFKC and collapses white space), and every document is
checked. Pieces are known from the model alone: `CaseOps` operators among them switch that transform on.
"""

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import numpy as np
import sentencepiece as spm

from pgolf.config.tokenizer import TokenizerConfig
from pgolf.errors import PgolfError
from pgolf.tokens.caseops import CHALLENGE, DIALECTS, LEADING, CaseOps
from pgolf.tokens.sentencepiece_model import SPACE_MARK, Pieces

PAD_ID, BOS_ID, EOS_ID, UNK_ID = range(4)  # the challenge's
MAX_TOKEN_BYTES = 65_535  # largest count that a uint16 sidecar holds
_SENTENCE_CHARACTERS = 1 << 16  # stretches that long of a document are shown to the trainer at a time
# The trainer skips a whole sentence that holds one of these, which it uses for itself.
_TRAINER_RESERVED = re.compile("[\t\u2585\u2581\0]+")
_PROBES = (" a  b ", "a\tb\r\n\n\nc \n", "ﬁ½²ß İ The NASA", "e\u0301\u200b\U0001f468\u200d\U0001f469 \u4e2d")


class Tokenizer(Pieces):
    """A SentencePiece model with the two exactness rules of the module docstring."""

    @cached_property
    def caseops(self) -> CaseOps | None:
        """The CaseOps dialect whose four operator characters are pieces of the model; None for a plain tokenizer."""
        return next((dialect for dialect in DIALECTS if dialect.symbols == self.operators), None)

    def with_fused_operators(self) -> "Tokenizer":
        """The same model with three pieces more, a space with TITLE, ALLCAPS or CAPNEXT behind it, at its end.

        PR #2109 and #2158: in the `challenge` dialect the two are the most frequent pair. SentencePiece cuts
        user-defined pieces out before it merges. Raises PgolfError for a tokenizer of another kind.
        """
        if self.caseops is not CHALLENGE:
            raise PgolfError(
                f"{self.name} is not a CaseOps tokenizer of the challenge: leave tokenizer.fuse_operators out"
            )
        proto = self.proto
        for symbol in self.operators[:3]:
            if self.sp.piece_to_id(SPACE_MARK + symbol) != self.sp.unk_id():
                continue
            piece = (SPACE_MARK + symbol).encode()
            # ModelProto.pieces (field 1) may be continued at the end of the file: text, score 0, USER_DEFINED (4).
            entry = b"\x0a" + bytes([len(piece)]) + piece + b"\x15" + bytes(4) + b"\x18\x04"
            proto += b"\x0a" + bytes([len(entry)]) + entry
        return Tokenizer(proto, self.name)

    @cached_property
    def byte_tokens(self) -> np.ndarray | None:
        """Token of each byte value: uint16 (256,); None without byte fallback."""
        tokens = [self.sp.piece_to_id(f"<0x{value:02X}>") for value in range(256)]
        return np.array(tokens, np.uint16) if all(self.sp.is_byte(token) for token in tokens) else None

    @cached_property
    def lossless(self) -> bool:
        """True if a set of difficult texts is decoded exactly; every document is checked as well."""
        texts = [probe.encode() for probe in _PROBES]
        return all(self.decode(tokens) == text for tokens, text in zip(self.encode(texts), texts, strict=True))

    @cached_property
    def dummy_prefix(self) -> bytes:
        """The space that a model with a dummy prefix puts before the text and takes away when decoding."""
        tokens = self.sp.encode("a")
        return b" " if tokens and self.pieces[tokens[0]].startswith(b" ") else b""

    @cached_property
    def _literal(self) -> re.Pattern[str]:
        """Pattern of the parts coded as byte pieces: invalid UTF-8, and U+2581 where spaces are kept."""
        keeps_spaces = self.dummy_prefix == b"" and self.sp.decode(self.sp.encode(" a  b ")) == " a  b "
        mark = SPACE_MARK if keeps_spaces and self.byte_tokens is not None else ""
        return re.compile(f"([\udc80-\udcff{mark}]+)")

    def encode(self, documents: Sequence[bytes]) -> list[np.ndarray]:
        """Tokens of each document, uint16, BOS first. One thread; releases the interpreter, so call it from several."""
        texts = documents if self.caseops is None else self.caseops.encode_batch(documents)
        whole = [text for text in texts if not self._is_odd(text)]
        encoded = iter(self.sp.encode(whole, return_type="numpy", num_threads=1) if whole else ())
        bos = np.array([self.bos_id], np.uint16)
        found = []
        for document, text in zip(documents, texts, strict=True):
            parts = self._odd_parts(text) if self._is_odd(text) else [next(encoded)]
            tokens = np.concatenate([bos, *parts]).astype(np.uint16)
            if len(document) > MAX_TOKEN_BYTES * (len(tokens) - 1):
                # A lossy model leaves fewer tokens than can carry the document's bytes (none for "  "): spell it out.
                tokens = np.concatenate([bos, self._spell(text)]).astype(np.uint16)
            found.append(tokens)
        return found

    def decode(self, tokens: np.ndarray, drop_stray: bool = False) -> bytes:
        """The text of some tokens; of a whole document when they begin with its BOS.

        drop_stray: see `CaseOps.decode`; without it, ValueError is raised for case operators in a wrong place.
        """
        text = b"".join([self.pieces[token] for token in tokens.tolist()])
        if self.dummy_prefix and len(tokens) and tokens[0] == self.bos_id:
            text = text.removeprefix(self.dummy_prefix)
        return text if self.caseops is None else self.caseops.decode(text, drop_stray)

    def decode_lines(self, tokens: np.ndarray) -> bytes:
        """The texts of many documents' tokens in one pass, each behind a line end where its BOS stands.

        Equal to `decode` of each document, except that a dummy prefix is kept.
        """
        flat, starts, lengths = self._flat_pieces
        sizes = lengths[tokens]
        ends = np.cumsum(sizes, dtype=np.int32)
        index = np.repeat(starts[tokens] - ends + sizes, sizes)
        index += np.arange(len(index), dtype=np.int32)
        text = flat[index].tobytes()
        return text if self.caseops is None else self.caseops.decode(text)

    @cached_property
    def _flat_pieces(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All pieces as one array of bytes, with the start and length of each; BOS becomes a line end."""
        pieces = list(self.pieces)
        pieces[self.bos_id] = b"\n"
        lengths = np.array([len(piece) for piece in pieces], np.int32)
        return np.frombuffer(b"".join(pieces), np.uint8), np.cumsum(lengths, dtype=np.int32) - lengths, lengths

    def transform(self, document: bytes) -> bytes:
        """The document as SentencePiece sees it: itself, but for CaseOps."""
        return document if self.caseops is None else self.caseops.encode(document)

    def ends(self, document: bytes, tokens: np.ndarray) -> np.ndarray:
        """End of each token of a document (BOS included) in its transformed text: int64 (n,), for lossy documents.

        SentencePiece's own alignment; text dropped between two tokens belongs to the later one, and text dropped at
        the end to the last one.
        """
        text = self.transform(document)
        if np.array_equal(tokens[1:], self._spell(text)):
            return np.arange(len(tokens), dtype=np.int64)
        ends, start = [0], 0
        for part, literal in self._cut(text):
            if literal:
                ends.extend(range(start + 1, start + len(part) + 1))
            else:
                ends.extend(start + end for _, end in self.sp.encode(part, return_type="offset_mapping")["offsets"])
            start += len(part)
        ends[-1] = len(text)
        return np.maximum.accumulate(np.array(ends, np.int64))

    def _is_odd(self, text: bytes) -> bool:
        if text.isascii():
            return False
        return self._literal.search(text.decode("utf-8", "surrogateescape")) is not None

    def _spell(self, text: bytes) -> np.ndarray:
        if self.byte_tokens is None:
            return np.full(len(text), self.sp.unk_id(), np.uint16)
        return self.byte_tokens[np.frombuffer(text, np.uint8)]

    def _odd_parts(self, text: bytes) -> list[np.ndarray]:
        return [
            self._spell(part) if literal else self.sp.encode(part, return_type="numpy")
            for part, literal in self._cut(text)
        ]

    def _cut(self, text: bytes) -> Iterator[tuple[bytes, bool]]:
        """Stretches of the text, with whether they are to be spelled out as bytes."""
        for index, part in enumerate(self._literal.split(text.decode("utf-8", "surrogateescape"))):
            if part:
                yield part.encode("utf-8", "surrogateescape"), index % 2 == 1


def train(documents: Iterable[bytes], config: TokenizerConfig) -> Tokenizer:
    """Train a tokenizer that normalizes nothing; the same documents and settings give the same model.

    Raises PgolfError for a vocabulary that the text cannot fill, or one too small for its bytes and characters.
    """
    dialect = LEADING if config.caseops else None
    model = io.BytesIO()
    try:
        spm.SentencePieceTrainer.train(
            sentence_iterator=_sentences(documents, dialect),
            model_writer=model,
            model_type=config.model_type,
            vocab_size=config.vocab_size,
            character_coverage=config.character_coverage,
            split_digits=config.split_digits,
            allow_whitespace_only_pieces=config.whitespace_pieces,
            byte_fallback=True,
            required_chars=SPACE_MARK,  # or spaces fall back to its bytes where the train text has none
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            user_defined_symbols=list(dialect.symbols) if dialect else [],
            pad_id=PAD_ID,
            bos_id=BOS_ID,
            eos_id=EOS_ID,
            unk_id=UNK_ID,
            max_sentence_length=4 * _SENTENCE_CHARACTERS,
            num_threads=2,  # recorded in the model file, so it may not depend on the machine
            minloglevel=3,  # its errors come back as exceptions
        )
    except (RuntimeError, OSError) as error:
        raise _training_error(str(error), config) from error
    return Tokenizer(model.getvalue(), "the trained tokenizer")


def _sentences(documents: Iterable[bytes], dialect: CaseOps | None) -> Iterator[str]:
    for document in documents:
        text = (dialect.encode(document) if dialect else document).decode("utf-8", "replace")
        for start in range(0, len(text), _SENTENCE_CHARACTERS):
            for sentence in _TRAINER_RESERVED.split(text[start : start + _SENTENCE_CHARACTERS]):
                if sentence:
                    yield sentence


def _training_error(text: str, config: TokenizerConfig) -> PgolfError:
    size = config.vocab_size
    if found := re.search(r"Vocabulary size too high.*<= (\d+)", text):
        return PgolfError(
            f"tokenizer.vocab_size = {size} is too large for the corpus, which fills at most {found.group(1)} pieces; "
            "lower it or add text"
        )
    if found := re.search(r"smaller than required_chars\D*\d+ vs (\d+)", text):
        return PgolfError(
            f"tokenizer.vocab_size = {size} is too small: the 256 bytes and the corpus's characters alone need "
            f"{found.group(1)}; raise it or lower tokenizer.character_coverage"
        )
    return PgolfError(f"SentencePiece could not train a tokenizer of {size} pieces on this corpus: {text.strip()}")
