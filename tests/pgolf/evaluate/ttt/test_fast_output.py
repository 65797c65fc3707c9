"""The output's fast weights against a plain version: a whole vector for every context, nothing left out or shared."""

import math

import numpy as np

from pgolf.config.ttt import TttConfig
from pgolf.evaluate.ttt.fast_output import BUCKETS, FLOOR, SCALE_FLOOR, SCALE_RATE, FastOutput

VOCAB, BOS = 12, 1


def plain(previous: np.ndarray, targets: np.ndarray, logits: np.ndarray, settings: TttConfig) -> np.ndarray:
    """Nats of each target, table by table."""
    tables = [(length, True, rate) for length, rate in enumerate(settings.output_lr)]
    tables += [(length + 1, False, rate) for length, rate in enumerate(settings.output_stream_lr)]
    scales = np.ones((len(tables), BUCKETS))
    scale_squares = np.full((len(tables), BUCKETS), SCALE_FLOOR)
    held: dict[tuple[int, ...], list[np.ndarray]] = {}
    met: dict[tuple[int, ...], int] = {}
    begin, nll = 0, []
    for at, target in enumerate(targets.tolist()):
        if previous[at] == BOS:
            begin = at
            for key in [key for key in held if tables[key[0]][1]]:
                met[key] = 0
                held[key][0][:] = 0.0
                if tables[key[0]][0] > 0:  # of the empty context the squares stay
                    del held[key]
        keys = [
            (number, *previous[at + 1 - length : at + 1].tolist())
            for number, (length, _, _) in enumerate(tables)
            if length <= at + 1 - begin
        ]
        for key in keys:
            empty = [np.zeros(VOCAB), np.zeros(VOCAB), np.full(VOCAB, tables[key[0]][0] == 0)]
            held.setdefault(key, empty)  # weights, squares, whether a weight exists
        kinds = [(key[0], min(met.get(key, 0).bit_length(), BUCKETS - 1)) for key in keys]
        z = logits[at] + sum(scales[kind] * held[key][0] for kind, key in zip(kinds, keys, strict=True))
        p = np.exp(z) / np.exp(z).sum()
        nll.append(-math.log(p[target]))
        p[target] -= 1.0
        for kind, key in zip(kinds, keys, strict=True):
            weights, squares, exists = held[key]
            slope = float((p * weights).sum())
            scale_squares[kind] += slope**2
            scales[kind] -= SCALE_RATE * slope / math.sqrt(scale_squares[kind])
            exists[target] = True
            squares += exists * p * p
            weights -= exists * tables[key[0]][2] * p / np.sqrt(squares + FLOOR)
            met[key] = met.get(key, 0) + 1
    return np.array(nll)


def test_equals_the_plain_version() -> None:
    rng = np.random.default_rng(0)
    tokens = np.resize(rng.integers(2, VOCAB, 9), 301)
    tokens[rng.random(301) < 0.2] = rng.integers(2, VOCAB)
    tokens[[0, 40, 41, 150]] = BOS
    logits = rng.normal(size=(300, VOCAB))
    output = FastOutput(VOCAB, BOS, TttConfig())
    parts = [output.score(tokens[a:b], tokens[a + 1 : b + 1], logits[a:b], set())[0] for a, b in ((0, 17), (17, 300))]
    np.testing.assert_allclose(np.concatenate(parts), plain(tokens[:-1], tokens[1:], logits, TttConfig()), atol=1e-9)


def test_slopes_are_the_gradient_of_the_loss() -> None:
    tokens, logits = np.array([BOS, 3, 4, 3, 4, 3]), np.random.default_rng(0).normal(size=(5, VOCAB))
    nll, slopes, found = FastOutput(VOCAB, BOS, TttConfig()).score(tokens[:-1], tokens[1:], logits, {4})
    moved = logits.copy()
    moved[4, 7] += 1e-6
    other = FastOutput(VOCAB, BOS, TttConfig()).score(tokens[:-1], tokens[1:], moved, set())[0]
    assert abs((other[4] - nll[4]) / 1e-6 - slopes[4, 7]) < 1e-5
    assert abs(np.exp(found[4]).sum() - 1.0) < 1e-12
