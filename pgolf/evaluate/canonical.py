"""Tokens that a tokenizer never writes after those before them.

Most strings can be cut into pieces in several ways, and a tokenizer always cuts them in the same one: `th` before `e`
never comes where `the` is a piece. A model spreads some probability over such sequences all the same, 0.003 bits per
byte on the mini track, which evaluation can give back to the others (`evaluate.canonical`). Byte-pair merges need no
wider view than pairs: a sequence is what the tokenizer writes exactly if all its pairs are. A unigram tokenizer is the
subject of `canonical_words`.
"""

import itertools
from collections import Counter

import numpy as np
import torch
from torch import Tensor

from pgolf.errors import PgolfError
from pgolf.evaluate.canonical_words import Words
from pgolf.model.gpt import Barred
from pgolf.tokens.sentencepiece_model import Pieces


class Pairs:
    """Pairs of pieces that never come: (vocab_size, vocab_size) bool. See `Barred`."""

    reach = 1

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def __call__(self, previous: Tensor) -> Tensor:
        return self.table[previous[..., -1]]


def barred(tokenizer: Pieces, device: torch.device) -> Barred:
    """The value of `GPT.barred`.

    Takes half a second per thousand pieces squared with byte-pair merges. Raises PgolfError for a tokenizer that
    changes the text of its pieces, and for a unigram one with user-defined pieces that others can spell.
    """
    sp, size, scores = tokenizer.sp, tokenizer.vocab_size, tokenizer.scores
    texts = {token: piece.decode() for token, piece in enumerate(tokenizer.pieces) if piece and not sp.is_byte(token)}
    for (token, text), cut in zip(texts.items(), sp.encode([*texts.values()]), strict=True):
        exact = text.encode() == b"".join([tokenizer.pieces[part] for part in cut])
        if not exact or (scores is None and cut != [token]):
            raise PgolfError(
                f"{tokenizer.name} does not encode its own pieces as they are; set evaluate.canonical = false"
            )
    if scores is not None:
        shared = Counter(char for text in texts.values() for char in set(text))
        # User-defined pieces score 0 and are taken wherever they stand, so nothing else may be able to spell them.
        if any(shared[char] > 1 for token, text in texts.items() if scores[token] >= 0 for char in text):
            raise PgolfError(
                f"{tokenizer.name} has user-defined pieces whose characters other pieces have, too; set "
                "evaluate.canonical = false"
            )
        return Words(texts, scores, device)
    inside = {pair for text in texts.values() for pair in itertools.pairwise(text)}
    found = np.zeros((size, size), bool)
    for first, text in texts.items():
        near = [second for second, other in texts.items() if (text[-1], other[0]) in inside]
        cuts = sp.encode([text + texts[second] for second in near])
        found[first, [second for second, cut in zip(near, cuts, strict=True) if cut != [first, second]]] = True
    return Pairs(torch.from_numpy(found).to(device))
