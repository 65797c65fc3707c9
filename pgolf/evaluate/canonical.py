"""Pairs of pieces that a tokenizer never writes one after the other.

Most strings can be cut into pieces in several ways, and a tokenizer always cuts them in the same one: `th` before `e`
never comes where `the` is a piece. A model spreads some probability over such pairs all the same, 0.003 bits per byte
on the mini track, which evaluation can give back to the others (`evaluate.canonical`). Byte-pair merges need
no wider view: a sequence is what the tokenizer writes exactly if all its pairs are. A unigram tokenizer writes the cut
of the highest sum of scores, every part of which is the highest of its own text; of two cuts that score alike (`!` and
`!!`) either may come, and they may differ by the rounding of a sum over a whole document.
"""

import itertools

import numpy as np
import torch
from torch import Tensor

from pgolf.errors import PgolfError
from pgolf.tokens.sentencepiece_model import Pieces

ALIKE = 0.05  # SentencePiece sums scores in float32, 0.03 apart at 2^18, which is a document of 40,000 pieces


def barred(tokenizer: Pieces, device: torch.device) -> Tensor:
    """The value of `GPT.barred`: (vocab_size, vocab_size) bool, true where the second piece never follows the first.

    With a unigram tokenizer some are not found: a pair may be the best cut of its text and never that of a longer one.
    Takes a second per thousand pieces squared. Raises PgolfError for a tokenizer that changes the text of its pieces.
    """
    sp, size, scores = tokenizer.sp, tokenizer.vocab_size, tokenizer.scores
    texts = {token: piece.decode() for token, piece in enumerate(tokenizer.pieces) if piece and not sp.is_byte(token)}

    def comes(cut: list[int], tokens: list[int]) -> bool:
        """False if `tokens` are never the cut of their text, which is `cut`."""
        return cut == tokens or (scores is not None and scores[cut].sum() <= scores[tokens].sum() + ALIKE)

    found = np.zeros((size, size), bool)
    for (token, text), cut in zip(texts.items(), sp.encode([*texts.values()]), strict=True):
        exact = text.encode() == b"".join([tokenizer.pieces[part] for part in cut])
        if not exact or (scores is None and cut != [token]):
            raise PgolfError(
                f"{tokenizer.name} does not encode its own pieces as they are; set evaluate.canonical = false"
            )
        found[:, token] = not comes(cut, [token])
    inside = {pair for text in texts.values() for pair in itertools.pairwise(text)}
    for first, text in texts.items():
        near = [second for second, other in texts.items() if (text[-1], other[0]) in inside]
        cuts = sp.encode([text + texts[second] for second in near])
        found[first, [second for second, cut in zip(near, cuts, strict=True) if not comes(cut, [first, second])]] = True
    return torch.from_numpy(found).to(device)
