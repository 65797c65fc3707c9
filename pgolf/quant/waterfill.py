"""Reverse water-filling: step sizes 1 / L_jj per column (WaterSIC, arXiv 2603.04956) and 1 / U_rr per row.

The loss of an error E is tr(H_O E H_I Eᵀ) (see `hessian`). With H_I = L Lᵀ, L lower, and H_O = U Uᵀ, U upper, it is
‖Uᵀ E L‖², and rounding element (r, j) with step s costs U_rr² L_jj² s² / 12 once its error is fed to the columns
before it and to the rows after it. The cheapest way to spend bits makes that the same everywhere:
s = c / (U_rr L_jj) with one c, which leaves a uniform quantizer 0.2546 bit above the rate-distortion limit for every
covariance. Feedback between rows is YAQA's (arXiv 2505.22988); where only the diagonal of H_O is kept, U is its root.
Steps are put on the grid first, then columns are rounded from last to first, each by the scalar or the trellis rounder
(`trellis`), down its rows. The first columns are those whose inputs weigh most (the largest diagonal of H_I): they stay
free longest where rounding goes on in shares with training in between.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pgolf.quant import error_feedback, grid, rate_tables, trellis
from pgolf.quant.grid import Floats
from pgolf.quantized.tensors import QuantizedTensor

Positions = npt.NDArray[np.int64]

OUTPUT_DAMPING = 0.01  # of the mean diagonal of H_O: between 0.001 and 0.1 little changes
SEGMENT = 1024  # rows per trellis restart: a restart costs about the gain of three symbols


@dataclass(frozen=True, eq=False)
class Problem:
    """One matrix and all that decides its steps; fixed while steps are searched. Its columns stand as in `order`."""

    role: str
    order: Positions  # (columns,) which column of the matrix stands at a position; rounding goes from last to first
    weight: Floats  # (rows, columns)
    lower: Floats  # (columns, columns), factor of the damped curvature
    row_factor: Floats  # (rows,) U_rr
    row_carry: Floats  # (rows, rows) U_qr / U_rr for q < r: weight of a row's error in later targets; (0, 0): none
    row_sigma: Floats  # (rows,) deviation of a row's weights ...
    col_sigma: Floats  # (columns,) ... times this, mean square 1, is the expected deviation of an element

    @property
    def positions(self) -> Positions:
        """(columns,) where a column of the matrix stands."""
        return np.argsort(self.order)

    @property
    def natural(self) -> Floats:
        """(rows,) log2 of the row part of the steps at c = 1."""
        return np.asarray(-np.log2(self.row_factor), np.float64)

    def log2_ratio(self, log2_c: float) -> Floats:
        """(rows, columns) log2(sigma / step) of every element at a given c."""
        row = np.log2(self.row_sigma) - self.natural - log2_c
        column = np.log2(self.col_sigma) + np.log2(np.diag(self.lower))
        return np.asarray(row[:, None] + column[None, :], np.float64)


@dataclass(frozen=True)
class Rounding:
    """Settings of the rounding for given steps."""

    states: int = 8
    """Trellis states, 4 to 64; 0: the scalar rounder."""
    rate_weight: float = 1.0
    """Factor on the cost of a bit; 0: nearest level whatever it costs."""
    resolution: int = 8
    """Grid steps per octave."""


def prepare(weight: Floats, role: str, curvature: Floats, output: Floats, damping: float) -> Problem:
    """Factor both Hessians of `weight` (rows, columns) and keep the factors that step sizes are chosen from.

    curvature: (columns, columns) H_I; output: (rows, rows) H_O or (rows,) its diagonal.
    """
    order = np.argsort(-np.diag(curvature), kind="stable")
    weight, curvature = np.take(weight, order, axis=1), curvature[np.ix_(order, order)]
    lower, _ = error_feedback.factor(curvature, damping)
    if output.ndim == 1:
        row_factor, row_carry = np.sqrt(np.maximum(output, 1e-30)), np.zeros((0, 0))
    else:
        flipped, _ = error_feedback.factor(output[::-1, ::-1], OUTPUT_DAMPING)
        upper = flipped[::-1, ::-1]
        row_factor = np.diag(upper).copy()
        row_carry = np.ascontiguousarray(np.triu(upper, 1) / row_factor)
    size = max(float(np.sqrt(np.mean(weight**2))), 1e-30)
    row_sigma = np.sqrt(np.mean(weight**2, axis=1) + (1e-3 * size) ** 2)
    scaled = weight / row_sigma[:, None]
    col_sigma = np.sqrt(np.mean(scaled**2, axis=0) + 1e-6)
    return Problem(role, order, weight, lower, row_factor, row_carry, row_sigma, col_sigma)


@dataclass(frozen=True, eq=False)
class Steps:
    """Ideal steps of one matrix and their positions on the grid: a row's step times a column's."""

    rows: Floats  # (rows,) log2, wished for
    columns: Floats  # (columns,) log2, wished for
    row_index: grid.Indices
    col_index: grid.Indices
    resolution: int


def choose_steps(problem: Problem, log2_c: float, resolution: int) -> Steps:
    """The steps at a given c. The tensor's constant goes to the rows, so that column indices stay small."""
    columns = -np.log2(np.diag(problem.lower))
    center = float(np.mean(columns))
    rows = problem.natural + log2_c + center
    return _on_grid(rows, columns - center, resolution)


def move_columns(steps: Steps, octaves: float, columns: slice) -> Steps:
    """The same steps with some columns coarser by `octaves`; row steps apply to all columns and stay."""
    moved = steps.columns.copy()
    moved[columns] += octaves
    return _on_grid(steps.rows, moved, steps.resolution)


def _on_grid(rows: Floats, columns: Floats, resolution: int) -> Steps:
    row_index, col_index = (grid.index_of(np.exp2(part), resolution) for part in (rows, columns))
    return Steps(rows, columns, row_index, col_index, resolution)


def quantize(
    problem: Problem, log2_c: float, rounding: Rounding, probabilities: Floats | None = None
) -> QuantizedTensor:
    """Integers of the problem's weights at a given c, columns as in the matrix.

    probabilities: of |q| by class and quantizer, from `rates.refit`; None: a Gaussian's.
    """
    steps = choose_steps(problem, log2_c, rounding.resolution)
    everything = slice(0, problem.weight.shape[1])
    symbols, _ = round_columns(problem, problem.weight, steps, everything, rounding, probabilities)
    return tensor_of(problem, steps, symbols, rounding)


def round_columns(
    problem: Problem,
    weight: Floats,
    steps: Steps,
    columns: slice,
    rounding: Rounding,
    probabilities: Floats | None,
) -> tuple[np.ndarray, Floats]:
    """Round some columns of `weight` (rows, columns); those behind them are taken as done, those before as free.

    Returns the symbols (rows, width of `columns`) and the free columns (rows, columns.start) with the error of the
    rounded ones fed to them. probabilities: as in `quantize`.
    """
    row_step, col_step = (
        grid.step_of(steps.row_index, steps.resolution),
        grid.step_of(steps.col_index, steps.resolution),
    )
    omegas = (row_step / np.exp2(steps.rows)) ** 2, (col_step / np.exp2(steps.columns)) ** 2
    row_class = rate_tables.class_of(np.log2(problem.row_sigma / row_step))
    col_class = np.rint(np.log2(problem.col_sigma / col_step) * rate_tables.PER_OCTAVE).astype(np.int64)
    table = rate_tables.bits(
        rate_tables.gaussian_tables(rounding.states > 0) if probabilities is None else probabilities
    )
    of_a_bit = rounding.rate_weight * (trellis.TRELLIS_LAMBDA if rounding.states else trellis.SCALAR_LAMBDA)
    prices = of_a_bit * table
    carry = problem.lower / np.diag(problem.lower)  # (n, n)
    weights = np.ascontiguousarray(weight.T[: columns.stop])  # (columns, rows)
    targets = weights.copy()
    symbols = np.empty(weights.shape, np.int32)
    for stop in range(columns.stop, columns.start, -error_feedback.BLOCK):
        start = max(columns.start, stop - error_feedback.BLOCK)
        part = slice(start, stop)
        symbols[part], errors = trellis.round_block(
            targets[part],
            weights[part],
            carry[part, part],
            problem.row_carry,
            (row_step, col_step[part]),
            (omegas[0], omegas[1][part]),
            (row_class, col_class[part]),
            prices,
            rounding.states,
            SEGMENT,
        )
        targets[:start] += carry[part, :start].T @ errors
    return np.ascontiguousarray(symbols[columns].T), np.ascontiguousarray(targets[: columns.start].T)


def tensor_of(problem: Problem, steps: Steps, symbols: np.ndarray, rounding: Rounding) -> QuantizedTensor:
    """The tensor of symbols (rows, columns) that were rounded with these steps, its columns as in the matrix."""
    positions = problem.positions
    return QuantizedTensor(
        role=problem.role,
        symbols=np.take(symbols, positions, axis=1),
        row_scale=steps.row_index,
        col_scale=steps.col_index[positions],
        resolution=steps.resolution,
        trellis=rounding.states,
        segment=SEGMENT,
    )


def classes(problem: Problem, tensor: QuantizedTensor) -> np.ndarray:
    """(rows, columns) class of every element's symbol, columns as in the matrix, for `rates.refit`."""
    row_step = grid.step_of(tensor.row_scale, tensor.resolution)
    col_step = grid.step_of(tensor.col_scale, tensor.resolution)
    row = rate_tables.class_of(np.log2(problem.row_sigma / row_step))
    sigma = problem.col_sigma[problem.positions]
    column = np.rint(np.log2(sigma / col_step) * rate_tables.PER_OCTAVE).astype(np.int64)
    return row[:, None] + column[None, :]
