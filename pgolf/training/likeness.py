"""Which pieces are alike, for `optim.shared_components`: a row for each, by spelling and by neighbours."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pgolf.config import Config
from pgolf.errors import PgolfError
from pgolf.tokens import cooccurrence, spelling
from pgolf.tokens.shards import TokenStream

NEIGHBOURS = 2.0  # length of a row by neighbours: that of one by spelling, which has four or five properties of 1


def likeness(stream: TokenStream, pieces: Sequence[bytes] | None, config: Config) -> Tensor:
    """(vocab_size, n) float32.

    stream: train tokens; pieces: the text of each, None where there is no tokenizer. Raises PgolfError when there is
    none and `optim.shared_spelling` asks for one.
    """
    rows, optim, parts = config.model.vocab_size, config.optim, []
    if optim.shared_spelling:
        if pieces is None:
            raise PgolfError(
                "optim.shared_spelling needs the tokenizer of the shards, and there is none; set it to false, or "
                "optim.shared_lr to 0"
            )
        found = spelling.properties(pieces)
        parts.append(torch.cat((found, found.new_zeros(rows - len(found), found.shape[1]))))
    if optim.shared_neighbours:
        parts.append(NEIGHBOURS * cooccurrence.coordinates(stream, rows, optim.shared_neighbours))
    return torch.cat(parts, 1)
