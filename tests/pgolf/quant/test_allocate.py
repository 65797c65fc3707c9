"""Landing on a byte target: finest steps that fit, the price of a bit where the grid is too coarse, and no way."""

import math

import numpy as np
import pytest

from pgolf.errors import PgolfError
from pgolf.quant import allocate
from pgolf.quant.allocate import Matrices
from pgolf.quantized.tensors import QuantizedTensor

WEIGHTS = 800_000


class Law:
    """Rounding by a law: 3 bits a weight at 0 octaves, one fewer an octave, on a grid; 2% more if bits are free."""

    weights = WEIGHTS

    def __init__(self, grid: float, rate_weight: float) -> None:
        self.grid, self.rate_weight = grid, rate_weight
        self.prices: list[float] = []

    def round(self, octaves: float, rate_weight: float | None = None) -> Matrices:
        price = self.rate_weight if rate_weight is None else rate_weight
        self.prices.append(price)
        on_grid = math.floor(octaves / self.grid) * self.grid if self.grid else octaves
        found = max(1.0, WEIGHTS / 8 * (3 - on_grid) * (1.02 - 0.02 * price))
        one = np.full((1, 1), round(found), np.int32)
        return {"bytes": QuantizedTensor("mlp", one, np.zeros(1, np.int32), np.zeros(1, np.int32), 1)}


def size(matrices: Matrices) -> int:
    return int(matrices["bytes"].symbols[0, 0])


@pytest.mark.parametrize(("grid", "rate_weight"), [(0.0, 1.0), (0.0, 0.0), (0.03, 1.0), (0.03, 0.6)])
@pytest.mark.parametrize("start", [-1.0, 0.0, 2.0])
def test_it_lands_within_a_thousandth_below_the_target(grid: float, rate_weight: float, start: float) -> None:
    law, target = Law(grid, rate_weight), 234_900
    matrices, octaves = allocate.land(law, target, size, start, lambda found: None)
    assert target * (1 - allocate.TOLERANCE) <= size(matrices) <= target
    assert size(law.round(octaves)) <= target
    assert all(price <= rate_weight for price in law.prices)
    if not grid:
        assert set(law.prices) == {rate_weight}  # its own, where steps alone meet the target


def test_a_target_out_of_reach_is_refused_with_the_least_size() -> None:
    law = Law(0.0, 1.0)
    with pytest.raises(PgolfError, match="--target-bytes 0 cannot be reached: the coarsest steps take 1 bytes"):
        allocate.land(law, 0, size, 0.0, lambda found: None)
    assert len(law.prices) < 10  # it does not go on once coarser steps save nothing


def test_a_grid_that_no_price_bridges_gives_what_fits_and_ends_soon() -> None:
    law = Law(0.06, 0.2)
    matrices, _ = allocate.land(law, 234_900, size, 0.0, lambda found: None)
    assert 230_000 < size(matrices) < 234_000
    assert law.prices.count(0.2) == len(law.prices) - 1  # one look at free bits
