"""Settings of the tokenizer and of the split into train and val."""

from dataclasses import dataclass

from pgolf.errors import PgolfError

MODEL_TYPES = ("bpe", "unigram")
"""Kinds of SentencePiece model that are trained here."""


@dataclass(frozen=True)
class TokenizerConfig:
    vocab_size: int = 1024
    """Pieces of the SentencePiece model that `tokenize` trains; at most 65,536, since shards hold uint16."""
    model_type: str = "bpe"
    """`bpe` (byte-pair merges, as the challenge's tokenizers) or `unigram` (pieces of a unigram language model, arXiv
    1804.10959: 0.011 BPB better on the mini track, and slower to train)."""
    character_coverage: float = 0.9995
    """Share of the characters that are covered by single-character pieces; the rest fall back to bytes."""
    split_digits: bool = True
    """Tokenize every digit separately, as the challenge's tokenizers do."""
    caseops: bool = False
    """Letter case as operator tokens before words, so that `The` and `the` share pieces (pgolf/tokens/caseops.py)."""
    fuse_operators: bool = False
    """Add pieces of a space and a case operator to the CaseOps tokenizer that `--tokenizer` names (PR #2109)."""
    whitespace_pieces: bool = False
    """Allow pieces made of several spaces; the challenge's byte table miscounts them, pgolf's byte table does not."""
    train_bytes: int = 100_000_000
    """Most bytes of train text that the SentencePiece trainer reads."""
    val_fraction: float = 0.05
    """Share of the documents that the hash split assigns to val when no `--val` is given."""
    shard_tokens: int = 100_000_000
    """Tokens in a shard file (the challenge's own size)."""

    def __post_init__(self) -> None:
        if not 0 < self.vocab_size <= 65_536:
            raise PgolfError(
                f"tokenizer.vocab_size is {self.vocab_size}; it must be between 1 and 65,536, because shards store "
                "tokens as uint16"
            )
        if self.model_type not in MODEL_TYPES:
            raise PgolfError(f"tokenizer.model_type is {self.model_type!r}; choose one of {', '.join(MODEL_TYPES)}")
        if not 0.0 < self.val_fraction < 1.0:
            raise PgolfError(f"tokenizer.val_fraction is {self.val_fraction}; it must lie between 0 and 1")
