"""Bits of a symbol, as the rounders price them: tables by how many steps wide the weights are.

A class is log2(sigma / step) on an eighth-octave grid. The tables begin as those of a Gaussian cut into the cells of
each quantizer; once a model has been rounded they are refitted to its own symbols, since trained weights have heavier
tails. They only steer decisions: the coder has its own tables, and nothing here reaches a file.
"""

import math
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import torch

from pgolf.quant.grid import Floats
from pgolf.quantized.tensors import kappas

PER_OCTAVE = 8
LOWEST, HIGHEST = -4.0, 9.0  # octaves of sigma / step that have a table each
CLASSES = int((HIGHEST - LOWEST) * PER_OCTAVE) + 1
LARGEST = 24  # |q| with an entry; beyond it the bits go on in a straight line ...
TAIL = 8  # ... as over so many last entries: the step between two of them is mostly noise
_PRIOR = 50.0  # symbols that the Gaussian table counts for when tables are refitted
_FLOOR = 2.0**-24


def class_of(log2_ratio: Floats) -> np.ndarray:
    """Class index of log2(sigma / step), before clipping: row and column parts may be computed apart and added."""
    return np.rint((log2_ratio - LOWEST) * PER_OCTAVE).astype(np.int64)


def _gaussian_cdf(x: Floats) -> Floats:
    return (0.5 * torch.erfc(torch.from_numpy(-x / math.sqrt(2.0)))).numpy()


@lru_cache
def gaussian_tables(trellis: bool) -> Floats:
    """(CLASSES, 2, LARGEST + 1) probabilities of |q| for a Gaussian; without the trellis both quantizers are equal."""
    sigma = np.exp2(LOWEST + np.arange(CLASSES) / PER_OCTAVE)[:, None]  # in steps
    q = np.arange(LARGEST + 1, dtype=np.float64)
    found = []
    for kappa in (0, 1):
        levels = (2 * q - kappa) if trellis else q
        levels[0] = 0.0
        upper = levels + (1.0 if trellis else 0.5)  # boundary to the next level
        if trellis:
            upper[:-1] = (levels[:-1] + levels[1:]) / 2
        lower = np.concatenate([[0.0], upper[:-1]])
        found.append(2 * (_gaussian_cdf(upper / sigma) - _gaussian_cdf(lower / sigma)))
    tables = np.stack(found, axis=1)
    return tables / tables.sum(axis=-1, keepdims=True)


def bits(probabilities: Floats) -> Floats:
    """Bits of |q| and its sign, from probabilities of |q| (..., LARGEST + 1)."""
    cost = -np.log2(np.maximum(probabilities, _FLOOR))
    cost[..., 1:] += 1.0
    return np.ascontiguousarray(cost)


def refit(parts: Iterable[tuple[np.ndarray, np.ndarray, int, int]], trellis: bool) -> Floats:
    """Probabilities of |q| from a model's own symbols, smoothed toward the Gaussian ones.

    Symbols beyond the last entry are left out. Counted in it, as they once were, they made it the cheapest of the wide
    classes and pushed their large weights outwards: 0.05 to 0.35 bit lost at 6 and 7 bits a weight (Gaussian weights).

    parts: per tensor (symbols (rows, columns), classes (rows, columns), trellis states, segment).
    """
    prior = gaussian_tables(trellis)
    counts = _PRIOR * prior
    for symbols, classes, states, segment in parts:
        kappa = kappas(symbols, states, segment).astype(np.int64)
        size = np.abs(symbols).astype(np.int64)
        key = (np.clip(classes, 0, CLASSES - 1) * 2 + kappa) * (LARGEST + 1) + size
        counts += np.bincount(key[size <= LARGEST], minlength=counts.size).reshape(counts.shape)
    if not trellis:
        counts[:, 1] = counts[:, 0]
    return counts / counts.sum(axis=-1, keepdims=True)


@lru_cache
def _gaussian_entropies() -> tuple[Floats, Floats]:
    table = gaussian_tables(False)[:, 0]
    entropy = np.sum(table * bits(table), axis=1)
    octaves = LOWEST + np.arange(CLASSES) / PER_OCTAVE
    wide = octaves > 2.0  # the table ends before such Gaussians do: use the closed form, exact there
    return octaves, np.where(wide, 2.0471 + octaves, entropy)


def gaussian_bits(log2_ratio: Floats) -> Floats:
    """Entropy in bits of a Gaussian of deviation sigma rounded with a uniform step, by log2(sigma / step)."""
    octaves, entropy = _gaussian_entropies()
    inside = np.interp(log2_ratio, octaves, entropy)
    return np.where(log2_ratio > HIGHEST, 2.0471 + log2_ratio, inside)
