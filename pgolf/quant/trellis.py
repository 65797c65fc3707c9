"""Rounding one block of columns with error feedback, weighing distortion against bits; compiled with numba.

The scalar rounder picks, per weight, the integer of least cost (u − m)² ω + λ bits. The trellis rounder (dependent
quantization, ISO/IEC 15938-17; Marcellin and Fischer 1990) finds by Viterbi the path of least total cost down the rows
of a column, restarting in state 0 at every segment. Because the layer loss couples columns and never rows, one exact
path per column composes with error feedback between columns without approximation.

u is the target in units of the step; ω corrects for steps that were rounded to the grid and is close to 1.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from pgolf.quant.dequantize import KAPPA, NEXT_STATE

Array = npt.NDArray[Any]

# λ per squared step, from the slope of rate against distortion: ln 2 / 6 for a uniform quantizer (a bit costs a factor
# of four in distortion), 4 ln 2 / 6 × 0.7 in units of the trellis's half step (NNCodec's Quant.cpp).
SCALAR_LAMBDA = 0.1155
TRELLIS_LAMBDA = 0.3235


@njit(cache=True, nogil=True)
def _bits(table: Array, cls: int, kappa: int, q: int) -> float:
    last = table.shape[2] - 1
    if q <= last:
        return table[cls, kappa, q]
    return table[cls, kappa, last] + (q - last) * (table[cls, kappa, last] - table[cls, kappa, last - 1])


@njit(cache=True, nogil=True)
def _scalar(u: Array, omega: Array, cls: Array, table: Array, lam: float, out: Array) -> None:
    for t in range(len(u)):
        size = abs(u[t])
        low = int(np.floor(size))
        best_cost, best = np.inf, 0
        for q in (low, low + 1, 0):
            cost = omega[t] * (size - q) ** 2 + lam * _bits(table, cls[t], 0, q)
            if cost < best_cost:
                best_cost, best = cost, q
        out[t] = best if u[t] >= 0 else -best


@njit(cache=True, nogil=True)
def _viterbi(
    u: Array, omega: Array, cls: Array, table: Array, lam: float, following: Array, kappas: Array, out: Array
) -> None:
    steps, states = len(u), len(kappas)
    chosen = np.empty((steps, 2, 2), np.int32)  # best |q| by (quantizer, parity)
    came = np.empty((steps, states), np.int8)  # state before, by state after
    cost = np.full(states, np.inf)
    cost[0] = 0.0
    after = np.empty(states)
    price = np.empty((2, 2))
    for t in range(steps):
        size = abs(u[t])
        for kappa in range(2):
            middle = (size + kappa) / 2.0  # |u| in levels: m = 2q − κ for q > 0
            for parity in range(2):
                low = 2 * int(np.floor((middle - parity) / 2.0)) + parity
                best_cost, best = np.inf, 0
                for step in range(3):
                    q = low + 2 * step if step < 2 else 0
                    if q < 0 or (q & 1) != parity:
                        continue
                    m = 2 * q - kappa if q > 0 else 0
                    c = omega[t] * (size - m) ** 2 + lam * _bits(table, cls[t], kappa, q)
                    if c < best_cost:
                        best_cost, best = c, q
                price[kappa, parity] = best_cost
                chosen[t, kappa, parity] = best
        after[:] = np.inf
        for state in range(states):
            if cost[state] == np.inf:
                continue
            for parity in range(2):
                to = following[state, parity]
                c = cost[state] + price[kappas[state], parity]
                if c < after[to]:
                    after[to] = c
                    came[t, to] = state
        cost[:] = after
    state = 0
    for s in range(states):
        if cost[s] < cost[state]:
            state = s
    for t in range(steps - 1, -1, -1):
        before = came[t, state]
        parity = 0 if following[before, 0] == state else 1
        q = chosen[t, kappas[before], parity]
        out[t] = q if u[t] >= 0 else -q
        state = before


@njit(cache=True, nogil=True)
def _round_block(
    targets: Array,
    weights: Array,
    carry: Array,
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
    u, omega = np.empty(rows), np.empty(rows)
    cls = np.empty(rows, np.int64)
    top = table.shape[0] - 1
    for j in range(columns - 1, -1, -1):
        u[:] = targets[j]
        for i in range(j + 1, columns):
            u += errors[i] * carry[i, j]
        for r in range(rows):
            u[r] /= row_step[r] * col_step[j]
            omega[r] = row_omega[r] * col_omega[j]
            cls[r] = min(max(row_class[r] + col_class[j], 0), top)
        if len(kappas) == 0:
            _scalar(u, omega, cls, table, lam, symbols[j])
        else:
            for start in range(0, rows, segment):
                stop = min(rows, start + segment)
                part = slice(start, stop)
                _viterbi(u[part], omega[part], cls[part], table, lam, following, kappas, symbols[j, part])
        state = 0
        for r in range(rows):
            q = symbols[j, r]
            level = q
            if len(kappas):
                if r % segment == 0:
                    state = 0
                level = 2 * q - np.sign(q) * kappas[state]
                state = following[state, q & 1]
            errors[j, r] = weights[j, r] - level * row_step[r] * col_step[j]


def round_block(
    targets: Array,
    weights: Array,
    carry: Array,
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
    carry: (columns, columns) M_ij = L_ij / L_jj inside the block; steps, omegas, classes: (of rows, of columns), the
    first two multiply and the last add; table: (classes, 2, K + 1) bits of |q| by class and quantizer, sign included;
    lam: cost of a bit in squared steps; states: 0, 4 or 8.
    """
    symbols = np.empty(targets.shape, np.int32)
    errors = np.empty(targets.shape)
    following = NEXT_STATE[states].astype(np.int64) if states else np.zeros((0, 2), np.int64)
    kappas = KAPPA[states].astype(np.int64) if states else np.zeros(0, np.int64)
    contiguous = [np.ascontiguousarray(part, np.float64) for part in (targets, weights, carry, *steps, *omegas)]
    kinds = [np.ascontiguousarray(part, np.int64) for part in classes]
    kernel: Any = _round_block  # compiled for the types it is given
    kernel(*contiguous, *kinds, table, lam, following, kappas, segment, symbols, errors)
    return symbols, errors
