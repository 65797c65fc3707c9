"""Rounding one block of columns with error feedback, weighing distortion against bits; compiled with numba.

The scalar rounder picks, per weight, the integer of least cost (u − m)² ω + λ bits. The trellis rounder (dependent
quantization, ISO/IEC 15938-17; Marcellin and Fischer 1990) finds by Viterbi the path of least total cost down the rows
of a column, restarting in state 0 at every segment. Error feedback between columns composes with it exactly. Feedback
between rows makes the targets depend on the path: every survivor keeps what its own residuals add to the next rows, and
one of `_MEMORY` rows ago is taken from the best survivor, with which all others have merged by then (per-survivor
processing, Raheli 1995).

u is the target in units of the step; ω corrects for steps that were rounded to the grid and is close to 1.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from pgolf.quant.rate_tables import TAIL
from pgolf.quantized.tensors import KAPPA, NEXT_STATE

Array = npt.NDArray[Any]

# λ per squared step, from the slope of rate against distortion: ln 2 / 6 for a uniform quantizer (a bit costs a factor
# of four in distortion), 4 ln 2 / 6 × 0.7 in units of the trellis's half step (NNCodec's Quant.cpp).
_MEMORY = 24
SCALAR_LAMBDA = 0.1155
TRELLIS_LAMBDA = 0.3235


@njit(cache=True, nogil=True)
def _level(q: int, kappa: int) -> int:
    if q == 0:
        return 0
    return 2 * q - kappa if q > 0 else 2 * q + kappa


@njit(cache=True, nogil=True)
def _price(prices: Array, kind: int, kappa: int, q: int) -> float:
    """Cost of the bits of |q|, from padded prices."""
    most = prices.shape[2] - 3
    at = min(q + 1, most)
    return prices[kind, kappa, at] + (q + 1 - at) * (prices[kind, kappa, most + 2] - prices[kind, kappa, most + 1])


@njit(cache=True, nogil=True)
def _scalar(
    target: Array, step: Array, omega: Array, cls: Array, prices: Array, row_carry: Array, out: Array, j: int
) -> None:
    """Column j, every weight by itself; see `_viterbi` for the arguments."""
    rows = len(target)
    common = np.zeros(rows)
    for r in range(rows):
        u = (target[r] + common[r]) / step[r]
        size = abs(u)
        low = int(size)
        best_cost, best = np.inf, 0
        for candidate in range(3):
            q = low + candidate if candidate < 2 else 0
            cost = omega[r] * (size - q) * (size - q) + _price(prices, cls[r], 0, q)
            if cost < best_cost:
                best_cost, best = cost, q
        out[j, r] = best if u >= 0 else -best
        if len(row_carry):
            residual = target[r] - out[j, r] * step[r]
            for later in range(r + 1, rows):
                common[later] += residual * row_carry[r, later]


def _padded(prices: Array) -> Array:
    """Prices of |q| at index q + 1: infinite for −1, and two more at the end, in a straight line as over the last.

    The line has one slope for both quantizers, never below 0: far out the noise in two would favor one of them by bits.
    """
    last = prices[..., -1:]
    rise = np.maximum((last - prices[..., -1 - TAIL : -TAIL]) / TAIL, 0.0).mean(axis=1, keepdims=True)
    return np.concatenate([np.full_like(last, np.inf), prices, last + rise, last + 2 * rise], -1)


@njit(cache=True, nogil=True)
def _choice(size: float, weight: float, prices: Array, kind: int, kappa: int, low: int) -> tuple[float, int]:
    """Cost and |q| of the best level for |u| = `size` in quantizer `kappa`: q = low, low + 2 or, if they are even, 0.

    Without branches: no processor could predict them.
    """
    most = prices.shape[2] - 3
    at = min(low + 1, most)
    beyond = (low + 1 - at) * (prices[kind, kappa, most + 2] - prices[kind, kappa, most + 1])
    gap = size + kappa - 2.0 * low  # too large by κ for q = 0, which comes once more below
    first = weight * gap * gap + (prices[kind, kappa, at] + beyond)
    second = weight * (gap - 4.0) * (gap - 4.0) + (prices[kind, kappa, at + 2] + beyond)
    best = low + 2 if second < first else low
    cost = min(second, first)
    nothing = weight * size * size + prices[kind, kappa, 1 - (low & 1)]
    return min(nothing, cost), 0 if nothing < cost else best


@njit(cache=True, nogil=True)
def _viterbi(
    target: Array,
    step: Array,
    omega: Array,
    cls: Array,
    prices: Array,
    row_carry: Array,
    following: Array,
    kappas: Array,
    common: Array,
    out: Array,
    j: int,
    start: int,
    stop: int,
) -> None:
    """Rows start .. stop of column j, one segment.

    target: (rows,) with the feedback of later columns; step: (rows,); prices: see `_padded`; common: (rows,) what the
    residuals of earlier rows add to the targets of later ones, carried on to the next segment; out: (columns, rows)
    symbols.
    """
    steps, states, rows = stop - start, len(kappas), len(target)
    fed = len(row_carry) > 0
    chosen = np.empty((steps, states, 2), np.int32)  # q by state before and parity
    came = np.empty((steps, states), np.int8)  # state before, by state after
    cost, after, price = np.empty(states), np.empty(states), np.empty((states, 2))
    ahead = np.zeros((states, _MEMORY))  # what each survivor's residuals add to this row's target and the next ones'
    moved = np.zeros((states, _MEMORY))
    window = np.zeros(_MEMORY - 1)  # row_carry from this row to the next ones
    residuals = np.zeros((steps if fed else 0, states))  # by state after
    for state in range(states):
        cost[state] = np.inf
    cost[0] = 0.0
    for t in range(steps):
        r = start + t
        if fed:
            for k in range(_MEMORY - 1):
                window[k] = row_carry[r, r + 1 + k] if r + 1 + k < rows else 0.0
            if t >= _MEMORY:
                best = 0
                for state in range(states):
                    if cost[state] < cost[best]:
                        best = state
                for back in range(t - 1, t - _MEMORY, -1):
                    best = came[back, best]
                settled = residuals[t - _MEMORY, best]
                for later in range(r, rows):
                    common[later] += settled * row_carry[r - _MEMORY, later]
        for state in range(states):
            kappa = kappas[state]
            first = state  # without feedback between rows all states of one quantizer see the same target
            if not fed:
                first = 0
                while kappas[first] != kappa:
                    first += 1
            if first < state:
                for parity in range(2):
                    price[state, parity], chosen[t, state, parity] = price[first, parity], chosen[t, first, parity]
                continue
            aim = target[r] + common[r]
            if fed:
                aim += ahead[state, 0]
            u = aim / step[r]
            below = int((abs(u) + kappa) / 2.0)  # |u| in levels, rounded down: m = 2q − κ for q > 0
            for low in range(below - 1, below + 1):
                price[state, low & 1], q = _choice(abs(u), omega[r], prices, cls[r], kappa, low)
                chosen[t, state, low & 1] = q if u >= 0 else -q
        for state in range(states):
            after[state] = np.inf
        for state in range(states):
            for parity in range(2):
                to = following[state, parity]
                c = cost[state] + price[state, parity]
                if c < after[to]:
                    after[to] = c
                    came[t, to] = state
        if fed:
            for state in range(states):
                if after[state] == np.inf:
                    continue
                before = came[t, state]
                parity = 0 if following[before, 0] == state else 1
                level = _level(chosen[t, before, parity], kappas[before])
                residual = target[r] - level * step[r]
                residuals[t, state] = residual
                for k in range(_MEMORY - 1):
                    moved[state, k] = ahead[before, k + 1] + residual * window[k]
            ahead, moved = moved, ahead
        for state in range(states):
            cost[state] = after[state]
    state = 0
    for s in range(states):
        if cost[s] < cost[state]:
            state = s
    for t in range(steps - 1, -1, -1):
        before = came[t, state]
        parity = 0 if following[before, 0] == state else 1
        out[j, start + t] = chosen[t, before, parity]
        if fed and t >= steps - _MEMORY:
            for later in range(stop, rows):
                common[later] += residuals[t, state] * row_carry[start + t, later]
        state = before


@njit(cache=True, nogil=True)
def _round_block(
    targets: Array,
    weights: Array,
    carry: Array,
    row_carry: Array,
    row_step: Array,
    col_step: Array,
    row_omega: Array,
    col_omega: Array,
    row_class: Array,
    col_class: Array,
    prices: Array,
    following: Array,
    kappas: Array,
    segment: int,
    symbols: Array,
    errors: Array,
) -> None:
    columns, rows = targets.shape
    aim, step, omega, common = np.empty(rows), np.empty(rows), np.empty(rows), np.empty(rows)
    cls = np.empty(rows, np.int64)
    top = prices.shape[0] - 1
    for j in range(columns - 1, -1, -1):
        for r in range(rows):
            aim[r] = targets[j, r]
        for i in range(j + 1, columns):
            factor = carry[i, j]
            for r in range(rows):
                aim[r] += errors[i, r] * factor
        for r in range(rows):
            step[r] = row_step[r] * col_step[j]
            omega[r] = row_omega[r] * col_omega[j]
            cls[r] = min(max(row_class[r] + col_class[j], 0), top)
        if len(kappas) == 0:
            _scalar(aim, step, omega, cls, prices, row_carry, symbols, j)
        else:
            for r in range(rows):
                common[r] = 0.0
            for start in range(0, rows, segment):
                stop = min(rows, start + segment)
                _viterbi(aim, step, omega, cls, prices, row_carry, following, kappas, common, symbols, j, start, stop)
        state = 0
        for r in range(rows):
            level = symbols[j, r]
            if len(kappas):
                if r % segment == 0:
                    state = 0
                level = _level(symbols[j, r], kappas[state])
                state = following[state, symbols[j, r] & 1]
            errors[j, r] = weights[j, r] - level * step[r]


def round_block(
    targets: Array,
    weights: Array,
    carry: Array,
    row_carry: Array,
    steps: tuple[Array, Array],
    omegas: tuple[Array, Array],
    classes: tuple[Array, Array],
    prices: Array,
    states: int,
    segment: int,
) -> tuple[Array, Array]:
    """Integers and errors of one block of columns, both (columns, rows): the transpose, so that columns lie together.

    targets: (columns, rows) with the feedback of later blocks in them; weights: (columns, rows) original weights;
    carry: (columns, columns) M_ij = L_ij / L_jj inside the block; row_carry: (rows, rows) U_qr / U_rr above the
    diagonal, or (0, 0) for no feedback between rows; steps, omegas, classes: (of rows, of columns), the first two
    multiply and the last add; prices: (classes, 2, K + 1), K >= TAIL, cost in squared steps of the bits of |q|, sign
    included, by class and quantizer; states: 0 or those of a trellis.
    """
    symbols = np.empty(targets.shape, np.int32)
    errors = np.empty(targets.shape)
    following = NEXT_STATE[states].astype(np.int64) if states else np.zeros((0, 2), np.int64)
    kappas = KAPPA[states].astype(np.int64) if states else np.zeros(0, np.int64)
    contiguous = [
        np.ascontiguousarray(part, np.float64) for part in (targets, weights, carry, row_carry, *steps, *omegas)
    ]
    kinds = [np.ascontiguousarray(part, np.int64) for part in classes]
    kernel: Any = _round_block  # compiled for the types it is given
    kernel(*contiguous, *kinds, _padded(prices), following, kappas, segment, symbols, errors)
    return symbols, errors
