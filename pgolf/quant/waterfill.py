"""Steps from what the loss feels: 1 / L_jj per column (WaterSIC, arXiv 2603.04956), 1 / sqrt(h_r) per row.

With H = L Lᵀ and row weights h_r, rounding the element (r, j) with step s costs h_r L_jj² s² / 12. The cheapest way to
spend bits makes that the same everywhere: s = c / (sqrt(h_r) L_jj) with one c, which leaves a uniform quantizer 0.2546
bit above the rate-distortion limit for every covariance. Steps are put on the grid first, then columns are rounded
from last to first with error feedback (`feedback`), each by the scalar or the trellis rounder (`trellis`).
"""

from dataclasses import dataclass

import numpy as np

from pgolf.quant import feedback, grid, rates, trellis
from pgolf.quant.grid import Floats
from pgolf.quant.tensors import QuantizedTensor

SEGMENT = 1024  # rows per trellis restart: a restart costs what about three symbols gain


@dataclass(frozen=True, eq=False)
class Problem:
    """One matrix and all that decides its steps; fixed while steps are searched."""

    role: str
    weight: Floats  # (rows, columns)
    lower: Floats  # (columns, columns), factor of the damped curvature
    row_weight: Floats  # (rows,)
    row_sigma: Floats  # (rows,) deviation of a row's weights ...
    col_sigma: Floats  # (columns,) ... times this, mean square 1, is the expected deviation of an element

    @property
    def natural(self) -> Floats:
        """(rows,) log2 of the row part of the steps at c = 1."""
        return np.asarray(-0.5 * np.log2(self.row_weight), np.float64)

    def log2_ratio(self, log2_c: float) -> Floats:
        """(rows, columns) log2(sigma / step) of every element at a given c."""
        row = np.log2(self.row_sigma) - self.natural - log2_c
        column = np.log2(self.col_sigma) + np.log2(np.diag(self.lower))
        return np.asarray(row[:, None] + column[None, :], np.float64)


@dataclass(frozen=True)
class Rounding:
    """How levels are chosen once steps are known."""

    states: int = 8
    """Trellis states: 4 or 8; 0: the scalar rounder."""
    rate_weight: float = 1.0
    """Factor on the cost of a bit; 0: nearest level whatever it costs."""
    resolution: int = 8
    """Grid steps per octave."""


def prepare(weight: Floats, role: str, curvature: Floats, row_weight: Floats, damping: float) -> Problem:
    """Factor the curvature (columns, columns) of `weight` (rows, columns) and note what is needed to choose steps."""
    lower, _ = feedback.factor(curvature, damping)
    size = max(float(np.sqrt(np.mean(weight**2))), 1e-30)
    row_sigma = np.sqrt(np.mean(weight**2, axis=1) + (1e-3 * size) ** 2)
    scaled = weight / row_sigma[:, None]
    col_sigma = np.sqrt(np.mean(scaled**2, axis=0) + 1e-6)
    return Problem(role, weight, lower, np.maximum(row_weight, 1e-30), row_sigma, col_sigma)


def quantize(
    problem: Problem, log2_c: float, rounding: Rounding, probabilities: Floats | None = None
) -> QuantizedTensor:
    """Integers of the problem's weights at a given c.

    probabilities: of |q| by class and quantizer, from `rates.refit`; None: a Gaussian's.
    """
    resolution, diagonal = rounding.resolution, np.diag(problem.lower)
    rows, columns = problem.weight.shape
    col_log2 = -np.log2(diagonal)
    center = float(np.mean(col_log2))  # the tensor's constant goes to the rows, so that column indices stay small
    row_index = grid.index_of(np.exp2(problem.natural + log2_c + center), resolution)
    col_index = grid.index_of(np.exp2(col_log2 - center), resolution)
    row_step, col_step = grid.step_of(row_index, resolution), grid.step_of(col_index, resolution)
    omegas = problem.row_weight * row_step**2 / 4.0**log2_c, (diagonal * col_step) ** 2
    row_class = rates.class_of(np.log2(problem.row_sigma / row_step))
    col_class = np.rint(np.log2(problem.col_sigma / col_step) * rates.PER_OCTAVE).astype(np.int64)
    table = rates.bits(rates.gaussian_tables(rounding.states > 0) if probabilities is None else probabilities)
    lam = rounding.rate_weight * (trellis.TRELLIS_LAMBDA if rounding.states else trellis.SCALAR_LAMBDA)
    carry = problem.lower / diagonal  # (n, n)
    weights = np.ascontiguousarray(problem.weight.T)  # (columns, rows)
    targets = weights.copy()
    symbols = np.empty((columns, rows), np.int32)
    for stop in range(columns, 0, -feedback.BLOCK):
        start = max(0, stop - feedback.BLOCK)
        part = slice(start, stop)
        symbols[part], errors = trellis.round_block(
            targets[part],
            weights[part],
            carry[part, part],
            (row_step, col_step[part]),
            (omegas[0], omegas[1][part]),
            (row_class, col_class[part]),
            table,
            lam,
            rounding.states,
            SEGMENT,
        )
        targets[:start] += carry[part, :start].T @ errors
    return QuantizedTensor(
        role=problem.role,
        symbols=np.ascontiguousarray(symbols.T),
        row_scale=row_index,
        col_scale=col_index,
        resolution=resolution,
        trellis=rounding.states,
        segment=SEGMENT,
    )


def classes(problem: Problem, tensor: QuantizedTensor) -> np.ndarray:
    """(rows, columns) class of every element's symbol, for `rates.refit`."""
    row_step = grid.step_of(tensor.row_scale, tensor.resolution)
    col_step = grid.step_of(tensor.col_scale, tensor.resolution)
    row = rates.class_of(np.log2(problem.row_sigma / row_step))
    column = np.rint(np.log2(problem.col_sigma / col_step) * rates.PER_OCTAVE).astype(np.int64)
    return row[:, None] + column[None, :]
