"""The train tokens that the quantizer reads: one part for calibration, a disjoint part for choices.

The stream is cut into sequences; every fiftieth belongs to the choosing part, the others to the calibrating one, so
that the two never share a token and both come from the whole of the text.
"""

import numpy as np
import torch
from torch import Tensor

from pgolf.errors import PgolfError
from pgolf.tokens.shards import TokenStream

CHOOSING_SHARE = 50
BATCH_TOKENS = 2048  # of one forward pass: more leave the caches of a CPU; not measured on a GPU


def batches(stream: TokenStream, tokens: int, length: int, choosing: bool, seed: int) -> list[Tensor]:
    """About `tokens` tokens as int64 batches (B, length), drawn without repetition; fewer when there are no more.

    Raises PgolfError when the stream does not hold two sequences.
    """
    count = len(stream) // length
    if count < 2:
        raise PgolfError(
            f"{stream.name} holds {len(stream):,} tokens; calibration needs at least {2 * length:,}, two sequences"
        )
    every = min(CHOOSING_SHARE, max(2, count // 8))
    numbers = np.arange(count)
    mine = numbers[(numbers % every == 0) == choosing]
    wanted = min(len(mine), max(1, tokens // length))
    picked = np.sort(np.random.default_rng(seed).choice(mine, size=wanted, replace=False))
    rows = torch.from_numpy(stream.rows(picked * length, length).astype(np.int64))
    return list(rows.split(max(1, BATCH_TOKENS // length)))
