"""The trellis rounder against a plain search in which every survivor keeps its whole path."""

from typing import NamedTuple

import numpy as np
import pytest

from pgolf.quant import trellis
from pgolf.quant.rate_tables import TAIL
from pgolf.quantized.tensors import KAPPA, NEXT_STATE

LAM = 0.3


class Survivor(NamedTuple):
    cost: float
    symbols: list[int]
    residuals: list[float]


def bits(table: np.ndarray, kappa: int, size: int) -> float:
    last = table.shape[1] - 1
    rise = float(np.mean(table[:, last] - table[:, last - TAIL])) / TAIL
    return float(table[kappa, min(size, last)]) + max(0, size - last) * rise


def plain(target: np.ndarray, step: np.ndarray, table: np.ndarray, carry: np.ndarray, states: int) -> list[int]:
    """Symbols of one column; every symbol up to 60 is tried."""
    rows, memory = len(target), trellis._MEMORY
    settled, alive = np.zeros(rows), {0: Survivor(0.0, [], [])}
    for r in range(rows):
        if len(carry) and r >= memory:
            best = min(alive.values(), key=lambda path: path.cost)
            settled[r:] += best.residuals[r - memory] * carry[r - memory, r:]
        reached: dict[int, Survivor] = {}
        for state, path in alive.items():
            kappa, aim = int(KAPPA[states][state]), target[r] + settled[r]
            for k in range(max(0, r - memory + 1), r) if len(carry) else ():
                aim += path.residuals[k] * carry[k, r]
            u = aim / step[r]
            for parity in (0, 1):
                sizes = {q: abs(u) - (2 * q - kappa if q else 0) for q in range(parity, 60, 2)}
                cost, size = min((gap**2 + LAM * bits(table, kappa, q), q) for q, gap in sizes.items())
                symbol = size if u >= 0 else -size
                residual = target[r] - np.sign(symbol) * (2 * size - kappa if size else 0) * step[r]
                to = int(NEXT_STATE[states][state][parity])
                if to not in reached or path.cost + cost < reached[to].cost:
                    reached[to] = Survivor(path.cost + cost, [*path.symbols, symbol], [*path.residuals, residual])
        alive = reached
    return min(alive.values(), key=lambda path: path.cost).symbols


@pytest.mark.parametrize("fed", [False, True])
@pytest.mark.parametrize("states", [4, 8, 64])
def test_symbols_are_those_of_the_plain_search(states: int, fed: bool) -> None:
    random, rows = np.random.default_rng(states), 70
    target, step = 10 * random.standard_normal(rows), np.exp(0.3 * random.standard_normal(rows))
    table = np.cumsum(random.uniform(0.5, 2, (2, TAIL + 1)), 1)  # symbols beyond the table occur
    carry = np.triu(0.1 * random.standard_normal((rows, rows)), 1) if fed else np.zeros((0, 0))
    one = np.ones(1)
    symbols, _ = trellis.round_block(
        target[None],
        target[None],
        np.ones((1, 1)),
        carry,
        (step, one),
        (np.ones(rows), one),
        (np.zeros(rows, np.int64), np.zeros(1, np.int64)),
        LAM * table[None],
        states,
        1024,
    )
    assert symbols[0].tolist() == plain(target, step, table, carry, states)


def test_the_scalar_rounder_takes_the_cheapest_level_of_all() -> None:
    random, rows = np.random.default_rng(9), 200
    target, one = 10 * random.standard_normal(rows), np.ones(1)
    table = np.cumsum(random.uniform(0.5, 2, (2, TAIL + 1)), 1)  # many symbols lie beyond it
    symbols, errors = trellis.round_block(
        target[None],
        target[None],
        np.ones((1, 1)),
        np.zeros((0, 0)),
        (np.ones(rows), one),
        (np.ones(rows), one),
        (np.zeros(rows, np.int64), np.zeros(1, np.int64)),
        LAM * table[None],
        0,
        1024,
    )
    costs = np.array([[(abs(u) - q) ** 2 + LAM * bits(table, 0, q) for q in range(60)] for u in target])
    np.testing.assert_array_equal(symbols[0], np.sign(target) * np.argmin(costs, axis=1))
    np.testing.assert_allclose(errors[0], target - symbols[0])
    assert np.mean(np.abs(symbols) > TAIL) > 0.25
