"""Initial probability tables of the entropy coder, and the grid of scale classes.

A class is the expected magnitude of a symbol, on a grid of an eighth octave: coding with a scale wrong by d (natural
log) costs 1.44 d^2 bits, 0.0009 on average at this spacing. For each class the tables hold a Gaussian's probabilities;
counting replaces them where there is data. Everything is made of additions, multiplications and divisions that
IEEE 754 rounds the same way everywhere, and is rounded to integers: the tables are part of the format.
"""

from functools import lru_cache

import numpy as np

from pgolf.quantized.tensors import octave_table

UNIT = 1024
"""Magnitudes are integers in units of 1 / UNIT of a quantization step."""
PER_OCTAVE = 8
CLASSES = 16 * PER_OCTAVE
"""From 1 / UNIT of a step to 64 steps."""
MAX_MAGNITUDE = 64 * UNIT - 1
PRIOR_TOTAL = 1 << 20
"""Sum of a starting table, but for rounding and one more for each symbol."""
SIGN_PRIOR_TOTAL = 1 << 12
OFFSETS = (0.0, 0.0, 1 / 16, 3 / 16, 5 / 16, 7 / 16)
"""Offset of the distribution's center from the symbol, in steps, by shape."""
SHAPES = len(OFFSETS)
ODD = 1
"""The shape of the trellis's second quantizer around zero: 0, 1/2, 3/2, 5/2, ... steps."""
FIRST_OFFSET = 2

# 1 - erf(x) = 1 / (1 + a1 x + ... + a6 x^6)^16 within 3e-7: Abramowitz and Stegun, 7.1.28
_ERF = (0.0705230784, 0.0422820123, 0.0092705272, 0.0001520143, 0.0002765672, 0.0000430638)
_MEAN_TO_ERF = 0.5641895835477563  # 1 / sqrt(pi): x = z / (sigma sqrt 2), and E|z| = sigma sqrt(2 / pi)


@lru_cache
def class_edges() -> np.ndarray:
    """Lower edge of every class, in 1 / UNIT steps: (CLASSES,) int64."""
    octaves, fractions = np.divmod(np.arange(CLASSES), PER_OCTAVE)
    return np.ceil(np.ldexp(octave_table(PER_OCTAVE)[fractions], octaves)).astype(np.int64)


@lru_cache
def class_of() -> np.ndarray:
    """Class by expected magnitude: (MAX_MAGNITUDE + 1,) uint8, to be indexed with 1 / UNIT steps."""
    return (np.searchsorted(class_edges(), np.arange(MAX_MAGNITUDE + 1), side="right") - 1).clip(0).astype(np.uint8)


@lru_cache
def class_centers() -> np.ndarray:
    """Representative expected magnitude of each class, in 1 / UNIT steps: (CLASSES,) int64."""
    middle = octave_table(2 * PER_OCTAVE)[1]
    octaves, fractions = np.divmod(np.arange(CLASSES), PER_OCTAVE)
    return np.floor(np.ldexp(middle * octave_table(PER_OCTAVE)[fractions], octaves)).astype(np.int64)


def _tail(distance: np.ndarray) -> np.ndarray:
    """Share of a class's Gaussian farther from its center than `distance` steps: (CLASSES, *distance.shape)."""
    steps = UNIT / class_centers().reshape(-1, *([1] * distance.ndim))
    x = np.minimum(distance * steps * _MEAN_TO_ERF, 32.0)
    series = np.ones_like(x)
    power = np.ones_like(x)
    for coefficient in _ERF:
        power = power * x
        series = series + coefficient * power
    for _ in range(4):
        series = series * series
    return 1.0 / series


@lru_cache
def prior(alphabet: int) -> np.ndarray:
    """Starting frequencies of magnitudes: (SHAPES, CLASSES, alphabet) int64, each at least 1.

    The last symbol of the alphabet includes all larger magnitudes.
    """
    whole = np.arange(1, alphabet)
    result = np.empty((SHAPES, CLASSES, alphabet), dtype=np.int64)
    for shape, offset in enumerate(OFFSETS):
        if shape == ODD:
            beyond = _tail(np.where(whole == 1, 0.25, whole - 1.0))
        else:
            beyond = 0.5 * (_tail(whole - 0.5 - offset) + _tail(whole - 0.5 + offset))
        edge = np.zeros((CLASSES, 1))
        probability = np.concatenate([edge + 1.0, beyond], axis=1) - np.concatenate([beyond, edge], axis=1)
        result[shape] = np.floor(np.maximum(probability, 0.0) * PRIOR_TOTAL).astype(np.int64) + 1
    return result


@lru_cache
def sign_prior() -> np.ndarray:
    """Starting frequencies of signs: (SHAPES, CLASSES // 8, 2, 2) int64.

    By shape, class, whether the magnitude is 1 or more, and sign: 0 toward the side the center lies off to.
    """
    result = np.empty((SHAPES, CLASSES // PER_OCTAVE, 2, 2), dtype=np.int64)
    for shape, offset in enumerate(OFFSETS):
        for larger in (0, 1):
            near, far = 0.5 + larger, 1.5 + larger
            edges = np.array([near - offset, far - offset, near + offset, far + offset])
            tail = _tail(edges)[PER_OCTAVE // 2 :: PER_OCTAVE]
            toward, away = tail[:, 0] - tail[:, 1] + 1e-6, tail[:, 2] - tail[:, 3] + 1e-6
            share = np.minimum(np.maximum(away / (toward + away), 1e-3), 0.5)
            result[shape, :, larger, 1] = np.floor(share * SIGN_PRIOR_TOTAL).astype(np.int64) + 1
            result[shape, :, larger, 0] = SIGN_PRIOR_TOTAL - result[shape, :, larger, 1]
    return result
