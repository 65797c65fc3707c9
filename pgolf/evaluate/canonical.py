"""Pairs of pieces that a tokenizer never writes one after the other.

Most strings can be cut into pieces in several ways, and a tokenizer always cuts them in the same one: `th` before `e`
never comes where `the` is a piece. A model spreads some probability over such pairs all the same, 0.003 bits per byte
on the mini track, which evaluation can give back to the others (`evaluate.canonical`). Byte-pair merges need
no wider view: a sequence is what the tokenizer writes exactly if all its pairs are.
"""

import itertools

import numpy as np
import torch
from torch import Tensor

from pgolf.errors import PgolfError
from pgolf.tokens.sentencepiece_model import Pieces


def barred(tokenizer: Pieces, device: torch.device) -> Tensor:
    """The value of `GPT.barred`: (vocab_size, vocab_size) bool, true where the second piece never follows the first.

    Takes a second per thousand pieces squared. Raises PgolfError for a tokenizer that changes the text of its pieces.
    """
    sp, size = tokenizer.sp, tokenizer.vocab_size
    texts = {token: piece.decode() for token, piece in enumerate(tokenizer.pieces) if piece and not sp.is_byte(token)}
    alone = dict(zip(texts, sp.encode([*texts.values()]), strict=True))
    if any(pieces != [token] for token, pieces in alone.items()):
        raise PgolfError(f"{tokenizer.name} does not encode its own pieces as they are; set evaluate.canonical = false")
    inside = {pair for text in texts.values() for pair in itertools.pairwise(text)}
    found = np.zeros((size, size), bool)
    for first, text in texts.items():
        near = [second for second, other in texts.items() if (text[-1], other[0]) in inside]
        cuts = sp.encode([text + texts[second] for second in near])
        found[first, [second for second, cut in zip(near, cuts, strict=True) if cut != [first, second]]] = True
    return torch.from_numpy(found).to(device)
