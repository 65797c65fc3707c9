"""Coordinates of pieces by the company they keep: pieces with like neighbours get like rows.

The positive pointwise mutual information of every piece with the piece after it and with the one before it, each a
sparse (vocab_size, vocab_size) matrix, side by side; the leading left singular vectors of both, each times the root of
its singular value (Levy, Goldberg and Dagan 2015: exponent 1/2, and context counts to the power 3/4). Nothing but
counts of pairs is needed: seconds for tens of millions of tokens, by subspace iteration.
"""

import numpy as np
import torch
from torch import Tensor

from pgolf.tokens.shards import TokenStream

SMOOTHING = 0.75  # of the counts of contexts: Levy, Goldberg and Dagan 2015
_MORE = 16  # columns beyond those asked for, and
_ROUNDS = 3  # rounds of the iteration: the coordinates only guide the training
_AT_ONCE = 1 << 24  # tokens whose pairs are counted at a time


def coordinates(stream: TokenStream, vocab_size: int, dims: int) -> Tensor:
    """(vocab_size, dims) float32 with rows of length 1; zeros for pieces that do not occur, and beyond the rank."""
    keys, counts = _pairs(stream, vocab_size)
    first, second = np.divmod(keys, vocab_size)
    sides = [_information(first, second, counts, vocab_size), _information(second, first, counts, vocab_size)]
    numbers = torch.Generator().manual_seed(0)
    basis = torch.randn(vocab_size, min(dims + _MORE, vocab_size), generator=numbers)
    for _ in range(_ROUNDS):
        basis = torch.linalg.qr(_squared(sides, basis))[0]
    values, vectors = torch.linalg.eigh(basis.T @ _squared(sides, basis))
    values, vectors = values.flip(0)[:dims].clamp(min=0), vectors.flip(1)[:, :dims]
    found = torch.zeros(vocab_size, dims)
    found[:, : len(values)] = basis @ vectors * values**0.25  # the squares of singular values
    seen = torch.zeros(vocab_size, 1)
    seen[torch.from_numpy(np.unique(np.concatenate((first, second))))] = 1
    return seen * found / torch.linalg.vector_norm(found, dim=1, keepdim=True).clamp(min=1e-6)


def _pairs(stream: TokenStream, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of neighbours as first * vocab_size + second, and how often each occurs."""
    keys, counts = np.empty(0, np.int64), np.empty(0, np.int64)
    for start in range(0, len(stream) - 1, _AT_ONCE):
        tokens = stream[start : start + _AT_ONCE + 1].astype(np.int64)
        found, often = np.unique(tokens[:-1] * vocab_size + tokens[1:], return_counts=True)
        keys, places = np.unique(np.concatenate((keys, found)), return_inverse=True)
        counts = np.bincount(places, np.concatenate((counts, often))).astype(np.int64)
    return keys, counts


def _information(rows: np.ndarray, columns: np.ndarray, counts: np.ndarray, size: int) -> Tensor:
    """Positive pointwise mutual information of rows with columns as contexts: sparse (size, size)."""
    by_row, by_column = (np.bincount(places, counts, size) for places in (rows, columns))
    contexts = by_column**SMOOTHING
    value = np.log(counts / by_row[rows] / (contexts / (contexts.sum() or 1.0))[columns])
    kept = value > 0
    places = torch.from_numpy(np.stack((rows[kept], columns[kept])))
    return torch.sparse_coo_tensor(
        places, torch.from_numpy(value[kept]).float(), (size, size), check_invariants=True
    ).coalesce()


def _squared(sides: list[Tensor], basis: Tensor) -> Tensor:
    """sum of side side^T basis."""
    return torch.stack([side @ (side.T @ basis) for side in sides]).sum(0)
