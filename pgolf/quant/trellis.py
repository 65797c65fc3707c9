"""Rounding one block of columns with error feedback, weighing distortion against bits; compiled with numba.

The scalar rounder picks, per weight, the integer of least cost (u − m)² ω + λ bits. The trellis rounder (dependent
quantization, ISO/IEC 15938-17; Marcellin and Fischer 1990) finds by Viterbi the path of least total cost down the rows
of a column, restarting in state 0 at every segment. Error feedback between columns composes with it exactly. Feedback
between rows makes the targets depend on the path: every survivor keeps its own last `_MEMORY` residuals, and what is
older is taken from the best one, with which all others have merged by then (per-survivor processing, Raheli 1995).

u is the target in units of the step; ω corrects for steps that were rounded to the grid and is close to 1.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from pgolf.quantized.tensors import KAPPA, NEXT_STATE

Array = npt.NDArray[Any]

# λ per squared step, from the slope of rate against distortion: ln 2 / 6 for a uniform quantizer (a bit costs a factor
# of four in distortion), 4 ln 2 / 6 × 0.7 in units of the trellis's half step (NNCodec's Quant.cpp).
_MEMORY = 24
SCALAR_LAMBDA = 0.1155
TRELLIS_LAMBDA = 0.3235


@njit(cache=True, nogil=True)
def _bits(table: Array, cls: int, kappa: int, q: int) -> float:
    last = table.shape[2] - 1
    if q <= last:
        return table[cls, kappa, q]
    return table[cls, kappa, last] + (q - last) * (table[cls, kappa, last] - table[cls, kappa, last - 1])


@njit(cache=True, nogil=True)
def _level(q: int, kappa: int) -> int:
    if q == 0:
        return 0
    return 2 * q - kappa if q > 0 else 2 * q + kappa


@njit(cache=True, nogil=True)
def _scalar(
    target: Array, step: Array, omega: Array, cls: Array, table: Array, lam: float, row_carry: Array, out: Array, j: int
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
            cost = omega[r] * (size - q) * (size - q) + lam * _bits(table, cls[r], 0, q)
            if cost < best_cost:
                best_cost, best = cost, q
        out[j, r] = best if u >= 0 else -best
        if len(row_carry):
            residual = target[r] - out[j, r] * step[r]
            for later in range(r + 1, rows):
                common[later] += residual * row_carry[r, later]


@njit(cache=True, nogil=True)
def _choices(
    size: float, weight: float, table: Array, kind: int, lam: float, kappa: int, parity: int
) -> tuple[float, int]:
    """Cost and |q| of the best level of that parity for |u| = `size` in quantizer `kappa`."""
    middle = (size + kappa) / 2.0  # |u| in levels: m = 2q − κ for q > 0
    low = 2 * int((middle - parity + 2.0) / 2.0) - 2 + parity
    best_cost, best = np.inf, 0
    for step in range(3):
        q = low + 2 * step
        if step == 2:
            q = 0
            if parity == 1:
                continue
        if q < 0:
            continue
        gap = size - (2 * q - kappa if q > 0 else 0)
        cost = weight * gap * gap + lam * _bits(table, kind, kappa, q)
        if cost < best_cost:
            best_cost, best = cost, q
    return best_cost, best


@njit(cache=True, nogil=True)
def _viterbi(
    target: Array,
    step: Array,
    omega: Array,
    cls: Array,
    table: Array,
    lam: float,
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

    target: (rows,) with the feedback of later columns; step: (rows,); common: (rows,) what the residuals of earlier
    rows add to the targets of later ones, carried on to the next segment; out: (columns, rows) symbols.
    """
    steps, states, rows = stop - start, len(kappas), len(target)
    fed = len(row_carry) > 0
    chosen = np.empty((steps, states, 2), np.int32)  # q by state before and parity
    came = np.empty((steps, states), np.int8)  # state before, by state after
    cost, after, price = np.empty(states), np.empty(states), np.empty((states, 2))
    recent = np.zeros((states, _MEMORY))  # residuals of each survivor's last rows, by row modulo memory
    moved = np.zeros((states, _MEMORY))
    window = np.zeros(_MEMORY)  # row_carry from those rows to this one
    for state in range(states):
        cost[state] = np.inf
    cost[0] = 0.0
    for t in range(steps):
        r = start + t
        if fed:
            for k in range(max(0, t - _MEMORY), t):
                window[k % _MEMORY] = row_carry[start + k, r]
            if t >= _MEMORY:
                best = 0
                for state in range(states):
                    if cost[state] < cost[best]:
                        best = state
                settled = recent[best, t % _MEMORY]
                for later in range(r, rows):
                    common[later] += settled * row_carry[r - _MEMORY, later]
                window[t % _MEMORY] = 0.0
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
                for k in range(_MEMORY):
                    aim += recent[state, k] * window[k]
            u = aim / step[r]
            for parity in range(2):
                price[state, parity], q = _choices(abs(u), omega[r], table, cls[r], lam, kappa, parity)
                chosen[t, state, parity] = q if u >= 0 else -q
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
                for k in range(_MEMORY):
                    moved[state, k] = recent[before, k]
                level = _level(chosen[t, before, parity], kappas[before])
                moved[state, t % _MEMORY] = target[r] - level * step[r]
            recent, moved = moved, recent
        for state in range(states):
            cost[state] = after[state]
    state = 0
    for s in range(states):
        if cost[s] < cost[state]:
            state = s
    if fed:
        for k in range(max(0, steps - _MEMORY), steps):
            for later in range(stop, rows):
                common[later] += recent[state, k % _MEMORY] * row_carry[start + k, later]
    for t in range(steps - 1, -1, -1):
        before = came[t, state]
        parity = 0 if following[before, 0] == state else 1
        out[j, start + t] = chosen[t, before, parity]
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
    table: Array,
    lam: float,
    following: Array,
    kappas: Array,
    segment: int,
    symbols: Array,
    errors: Array,
) -> None:
    columns, rows = targets.shape
    aim, step, omega, common = np.empty(rows), np.empty(rows), np.empty(rows), np.empty(rows)
    cls = np.empty(rows, np.int64)
    top = table.shape[0] - 1
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
            _scalar(aim, step, omega, cls, table, lam, row_carry, symbols, j)
        else:
            for r in range(rows):
                common[r] = 0.0
            for start in range(0, rows, segment):
                stop = min(rows, start + segment)
                _viterbi(
                    aim, step, omega, cls, table, lam, row_carry, following, kappas, common, symbols, j, start, stop
                )
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
    table: Array,
    lam: float,
    states: int,
    segment: int,
) -> tuple[Array, Array]:
    """Integers and errors of one block of columns, both (columns, rows): the transpose, so that columns lie together.

    targets: (columns, rows) with the feedback of later blocks in them; weights: (columns, rows) original weights;
    carry: (columns, columns) M_ij = L_ij / L_jj inside the block; row_carry: (rows, rows) U_qr / U_rr above the
    diagonal, or (0, 0) for no feedback between rows; steps, omegas, classes: (of rows, of columns), the first two
    multiply and the last add; table: (classes, 2, K + 1) bits of |q| by class and quantizer, sign included;
    lam: cost of a bit in squared steps; states: 0, 4 or 8.
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
    kernel(*contiguous, *kinds, table, lam, following, kappas, segment, symbols, errors)
    return symbols, errors
