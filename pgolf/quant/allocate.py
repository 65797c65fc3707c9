"""Bit allocation: step sizes per matrix, and the search for the common step size that meets a byte target.

With Fisher row weights every matrix would take the same c (see `waterfill`); the error of that approximation is
measured: each matrix alone is quantized at the common c and the divergence it causes per weight sets its own offset,
log2 c_T = log2 c − ½ log2(a_T / GM(a)), which makes the marginal loss per bit the same everywhere (QUANTIZATION 6.1).
The common c is then found by secant on the length of the actual encoded file, never on an estimate.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from pgolf.errors import PgolfError
from pgolf.quant import rate_tables, waterfill
from pgolf.quant.divergence import Divergence
from pgolf.quant.grid import Floats
from pgolf.quant.waterfill import Problem, Rounding
from pgolf.quantized.tensors import QuantizedTensor, dequantize

OFFSET_LIMIT = 1.5  # octaves that a measurement may move a matrix; more is noise or a matrix that is not used
TOLERANCE = 0.001  # of the target: where the packaged model must lie below it
_ATTEMPTS = 24

Matrices = dict[str, QuantizedTensor]
Item = TypeVar("Item")
Output = TypeVar("Output")


@dataclass(frozen=True)
class Share:
    """The bits allocated to one matrix and the measurements behind them."""

    name: str
    role: str
    weights: int
    offset: float
    """Octaves by which its step is coarser (+) or finer (−) than the Fisher weights alone would have it."""
    divergence: float
    """Nats per token that it alone cost, quantized at the common step."""


class Rounds(Protocol):
    """The knob that is searched to meet a byte target: a common step size, or the price of a bit."""

    @property
    def weights(self) -> int:
        """Weights that the step moves."""

    @property
    def rate_weight(self) -> float:
        """The price of a bit that `round` takes by itself."""

    def round(self, octaves: float, rate_weight: float | None = None) -> Matrices:
        """Every matrix quantized with steps coarser by `octaves`."""


def in_parallel(function: Callable[[Item], Output], items: Iterable[Item], threads: int) -> list[Output]:
    """`function` of every item, on `threads` threads, with BLAS held to one thread in each.

    Every BLAS call would otherwise start a thread per core: 67 matrices on 100 cores oversubscribe them.
    """
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, items))


class Plan:
    """Rounds all matrices at a common log2 c plus one offset each; tables are refitted as symbols change."""

    def __init__(self, problems: Mapping[str, Problem], rounding: Rounding, threads: int) -> None:
        self.problems = dict(problems)
        self.rounding = rounding
        self.offsets = dict.fromkeys(problems, 0.0)
        self.probabilities: Floats | None = None
        self.last_log2_c = 0.0
        self.threads = threads

    @property
    def weights(self) -> int:
        return sum(problem.weight.size for problem in self.problems.values())

    @property
    def rate_weight(self) -> float:
        return self.rounding.rate_weight

    def round(self, log2_c: float, rate_weight: float | None = None) -> Matrices:
        """Every matrix at log2_c plus its offset, rounded with the current rate tables; `rate_weight` overrides the
        setting."""
        how = self.rounding if rate_weight is None else replace(self.rounding, rate_weight=rate_weight)

        def one(name: str) -> QuantizedTensor:
            problem, log2_own = self.problems[name], log2_c + self.offsets[name]
            return waterfill.quantize(problem, log2_own, how, self.probabilities)

        return dict(zip(self.problems, in_parallel(one, self.problems, self.threads), strict=True))

    def refit(self, matrices: Matrices) -> None:
        """Take the rounders' tables from these symbols."""
        parts = [
            (tensor.symbols, waterfill.classes(self.problems[name], tensor), tensor.trellis, tensor.segment)
            for name, tensor in matrices.items()
        ]
        self.probabilities = rate_tables.refit(parts, self.rounding.states > 0)

    def bits(self, log2_c: float, names: Sequence[str]) -> float:
        """Estimated bits per weight over the named matrices, for Gaussian weights."""
        wide = 1.0 if self.rounding.states else 0.0  # the trellis has points 2 steps apart
        total = sum(
            float(np.sum(rate_tables.gaussian_bits(self.problems[name].log2_ratio(log2_c + self.offsets[name] + wide))))
            for name in names
        )
        return total / sum(self.problems[name].weight.size for name in names)

    def log2_c_for_bits(self, bits: float, names: Sequence[str]) -> float:
        """The common log2 c at which the named matrices take about `bits` bits per weight."""
        low, high = -100.0, 100.0
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if self.bits(middle, names) > bits else (low, middle)
        return (low + high) / 2


def measure(
    plan: Plan, divergence: Divergence, log2_c: float, on_progress: Callable[[int], None] = lambda done: None
) -> list[Share]:
    """Quantize each matrix alone at the common step, measure the divergence, and set the plan's offsets from it."""
    matrices = plan.round(log2_c)
    plan.refit(matrices)
    costs: dict[str, float] = {}
    for done, (name, tensor) in enumerate(matrices.items(), start=1):
        costs[name] = divergence.of({name: dequantize(tensor)})
        on_progress(done)
    sizes = {name: problem.weight.size for name, problem in plan.problems.items()}
    logs = {name: math.log2(max(cost / sizes[name], 1e-30)) for name, cost in costs.items()}
    mean = sum(sizes[name] * value for name, value in logs.items()) / plan.weights
    for name, value in logs.items():
        plan.offsets[name] += min(OFFSET_LIMIT, max(-OFFSET_LIMIT, -0.5 * (value - mean)))
    return [
        Share(name, plan.problems[name].role, sizes[name], plan.offsets[name], costs[name]) for name in plan.problems
    ]


def land(
    rounds: Rounds,
    target: int,
    size: Callable[[Matrices], int],
    octaves: float,
    on_progress: Callable[[int], None],
) -> tuple[Matrices, float]:
    """All matrices, at the finest steps whose encoded model takes at most `target` bytes, and their octaves; the search
    begins at `octaves`. It takes at least 99.9% where the grid of steps, or the price of a bit beside it, can.

    size: bytes of the packaged model with these matrices. Raises PgolfError when no step reaches the target.
    """
    search = _Search(rounds, target, size, on_progress)
    x: float | None = octaves
    for _ in range(_ATTEMPTS):
        if x is None or search.landed:
            break
        search.visit(x)
        x = search.propose()
    if search.good is not None and not search.landed:
        search.trim()
    if search.good is None:
        least = min(found for _, found in search.seen)
        raise PgolfError(
            f"--target-bytes {target:,} cannot be reached: the coarsest steps take {least:,} bytes; ask for more or "
            "train a smaller model"
        )
    return search.best, search.good[0]


class _Search:
    """Bracketed secant on bytes(log2 c), which falls with c but for steps of the grid."""

    def __init__(
        self,
        rounds: Rounds,
        target: int,
        size: Callable[[Matrices], int],
        on_progress: Callable[[int], None],
    ) -> None:
        self.rounds, self.target, self.size, self.on_progress = rounds, target, size, on_progress
        self.seen: list[tuple[float, int]] = []
        self.good: tuple[float, int] | None = None  # finest step so far that fits
        self.bad: tuple[float, int] | None = None  # coarsest that does not
        self.best: Matrices = {}

    @property
    def landed(self) -> bool:
        return self.good is not None and self.good[1] >= self.target * (1 - TOLERANCE)

    def visit(self, log2_c: float, rate_weight: float | None = None) -> int:
        matrices = self.rounds.round(log2_c, rate_weight)
        found = self.size(matrices)
        self.seen.append((log2_c, found))
        if found > self.target:
            if self.bad is None or log2_c > self.bad[0]:
                self.bad = (log2_c, found)
        elif self.good is None or found > self.good[1]:
            self.good, self.best = (log2_c, found), matrices
        self.on_progress(found)
        return found

    def trim(self) -> None:
        """Adjust the price of a bit where the grid of steps is too coarse to meet the target (small models)."""
        assert self.good is not None
        log2_c = self.good[0]
        low, high = 0.0, self.rounds.rate_weight  # cheaper bits: nearer to the weights, more bytes
        if self.visit(log2_c, low) <= self.target:
            return  # more than that no price gives
        for _ in range(_ATTEMPTS):
            if self.landed or high - low < 1e-6:
                return
            middle = (low + high) / 2
            low, high = (middle, high) if self.visit(log2_c, middle) > self.target else (low, middle)

    def propose(self) -> float | None:
        """The next log2 c; None when the grid leaves nothing in between or no coarser step helps."""
        aim = self.target * (1 - TOLERANCE / 2)
        last_x, last = self.seen[-1]
        if self.good is None or self.bad is None:
            # One octave of c is one bit of every weight: at low rates less, so the step is bounded and repeated.
            octaves = (last - aim) * 8 / self.rounds.weights
            if self.good is None and (octaves < 1e-4 or last_x > 60.0):
                return None
            return last_x + max(-3.0, min(3.0, octaves * 1.05))
        (right, fits), (left, over) = self.good, self.bad
        if right <= left:  # bytes are not exactly monotonic in c: also try the neighbors of the one that fits
            left, right = right - 0.01, right
        if right - left < 1e-5:
            return None
        share = (over - aim) / max(1, over - fits)
        return left + (right - left) * min(0.9, max(0.1, share))
