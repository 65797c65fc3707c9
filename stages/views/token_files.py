"""The names of a tokenize stage's files, and the tokenizer's entries in its manifest."""

from typing import Any

from pgolf.store import kinds
from pgolf.tokens import byte_counts
from pgolf.tokens.tokenizer import Tokenizer

TRAIN, VAL = kinds.TRAIN_SHARDS, kinds.VAL_SHARDS
TOKENIZER = kinds.TOKENIZER


def byte_counts_prefix(used: Tokenizer) -> str:
    """Prefix of the names of the files that hold the bytes of each val token."""
    return kinds.VAL_BYTES if used.caseops is None else kinds.CASEOPS_VAL_BYTES


def tokenizer_facts(used: Tokenizer) -> dict[str, Any]:
    """Properties of the tokenizer that do not depend on the text."""
    return {
        "vocab_size": used.vocab_size,
        "bos_id": used.bos_id,
        "caseops": None if used.caseops is None else used.caseops.name,
        "byte_fallback": used.byte_tokens is not None,
        "faults": byte_counts.faults(used),
    }
