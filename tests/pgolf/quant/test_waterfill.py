"""Rounding against theory: the loss identity, the gaps of QUANTIZATION 9.2, feedback between rows and columns."""

import numpy as np
import pytest

from pgolf.quant import error_feedback, rate_tables, waterfill
from pgolf.quant.waterfill import Problem, Rounding
from pgolf.quantized.tensors import QuantizedTensor, dequantize, kappas


def conditional_bits(tensor: QuantizedTensor) -> float:
    """Entropy of the symbols given the quantizer each was drawn from, bits per weight."""
    which, total = kappas(tensor.symbols, tensor.trellis, tensor.segment), 0.0
    for kappa in (0, 1):
        symbols = tensor.symbols[which == kappa]
        counts = np.unique(symbols, return_counts=True)[1]
        total += float(np.sum(counts * np.log2(symbols.size / counts)))
    return total / tensor.symbols.size


def error(problem: Problem, tensor: QuantizedTensor) -> np.ndarray:
    return problem.weight[:, problem.positions] - dequantize(tensor).double().numpy()


@pytest.mark.parametrize(
    ("rounding", "log2_c", "low", "high"),
    [
        (Rounding(states=0, rate_weight=0.0), -4.0, 0.2496, 0.2596),  # theory at a high rate: 0.2546
        (Rounding(states=0, rate_weight=0.0), -1.5, 0.2571, 0.2671),  # 0.2546 + ½ log2(1 + step² / 12)
        (Rounding(states=0), -1.5, 0.24, 0.258),
        (Rounding(states=4), -2.0, 0.08, 0.13),
        (Rounding(states=8), -2.0, 0.06, 0.11),
        (Rounding(states=0), -5.0, 0.2496, 0.2596),  # 44% of the symbols lie beyond the tables of bits: 0.553 once
        (Rounding(states=8), -5.0, 0.07, 0.085),  # 13% do: 0.163 once
        (Rounding(states=8), -7.0, 0.06, 0.085),  # most do
    ],
)
def test_gap_to_the_rate_distortion_bound(rounding: Rounding, log2_c: float, low: float, high: float) -> None:
    weight = np.random.default_rng(0).standard_normal((2048, 48))
    weight /= weight.std()
    problem = waterfill.prepare(weight, "mlp", np.eye(48), np.ones(2048), 1e-12)
    tensor = waterfill.quantize(problem, log2_c, rounding)
    for _ in range(2):  # as `quantize` does
        parts = [(tensor.symbols, waterfill.classes(problem, tensor), tensor.trellis, tensor.segment)]
        tensor = waterfill.quantize(problem, log2_c, rounding, rate_tables.refit(parts, rounding.states > 0))
    distortion = float(np.mean(error(problem, tensor) ** 2))
    assert low < conditional_bits(tensor) - 0.5 * np.log2(1 / distortion) < high


def correlated(size: int, generator: np.random.Generator, rho: float = 0.9) -> np.ndarray:
    """S R S with R of an AR(1) process and S diagonal, log-normal: neighbours agree, scales differ widely."""
    lags = np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
    scale = np.exp(generator.standard_normal(size))
    return rho**lags * np.outer(scale, scale)


def test_the_gain_of_column_steps_matches_theory() -> None:
    """Equal steps lose ½ log2(AM / GM of L_jj²) bits against 1 / L_jj steps, which stay at 0.2546."""
    generator = np.random.default_rng(1)
    weight, hessian = generator.standard_normal((8192, 64)), correlated(64, generator)
    rounding = Rounding(states=0, rate_weight=0.0, resolution=64)
    problem = waterfill.prepare(weight, "mlp", hessian, np.ones(8192), 1e-12)
    diagonal = np.diag(problem.lower)
    tensor = waterfill.quantize(problem, float(np.log2(np.exp(np.mean(np.log(diagonal))))) - 2.5, rounding)
    distortion = error_feedback.loss(error(problem, tensor), hessian) / weight.size
    bits = np.mean([conditional_bits(_column(tensor, j)) for j in range(64)])
    limit = 0.5 * np.log2(np.exp(np.mean(np.log(diagonal**2))) / distortion)
    assert bits - limit == pytest.approx(0.2546, abs=0.05)  # 8192 symbols a histogram hide 0.015 bit; 32,768: 0.269
    ordered, order = problem.weight, problem.order
    flat = error_feedback.quantize_columns(ordered, problem.lower, lambda j, targets: np.rint(targets / 0.25) * 0.25)
    flat_distortion = error_feedback.loss(ordered - flat, hessian[np.ix_(order, order)]) / weight.size
    levels = np.rint(flat / 0.25).astype(np.int64)
    flat_bits = np.log2(np.sqrt(2 * np.pi * np.e) / 0.25)
    lost = flat_bits - 0.5 * np.log2(np.exp(np.mean(np.log(diagonal**2))) / flat_distortion) - 0.2546
    expected = 0.5 * np.log2(np.mean(diagonal**2)) - np.mean(np.log2(diagonal))
    assert levels.any()
    assert lost == pytest.approx(expected, abs=0.06)


def _column(tensor: QuantizedTensor, j: int) -> QuantizedTensor:
    part = tensor.symbols[:, j : j + 1]
    return QuantizedTensor(tensor.role, part, tensor.row_scale, tensor.col_scale[j : j + 1], tensor.resolution)


@pytest.mark.parametrize("shape", [(20, 300), (300, 20), (1, 5), (5, 1)])
def test_the_loss_is_the_sum_of_what_each_column_was_rounded_by(shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(2)
    weight, hessian = generator.standard_normal(shape), correlated(shape[1], generator)
    lower, share = error_feedback.factor(hessian, 1e-9)
    assert share == 1e-9
    paid = []

    def round_column(j: int, targets: np.ndarray) -> np.ndarray:
        decoded = np.rint(targets / 0.3) * 0.3
        paid.append(np.sum((targets - decoded) ** 2) * lower[j, j] ** 2)
        return decoded

    decoded = error_feedback.quantize_columns(weight, lower, round_column)
    assert error_feedback.loss(weight - decoded, lower @ lower.T) == pytest.approx(sum(paid), rel=1e-6)


@pytest.mark.parametrize("states", [0, 4, 8])
def test_feedback_between_rows_and_columns_lowers_the_loss_it_is_meant_for(states: int) -> None:
    generator = np.random.default_rng(3)
    weight = generator.standard_normal((96, 160))
    hessian, output = correlated(160, generator), correlated(96, generator)
    full = waterfill.prepare(weight, "mlp", hessian, output, 1e-9)
    diagonal = waterfill.prepare(weight, "mlp", hessian, np.diag(output).copy(), 1e-9)
    losses, bits = [], []
    for problem in (full, diagonal):
        level = float(np.mean(np.log2(problem.row_factor)) + np.mean(np.log2(np.diag(problem.lower)))) - 2.0
        tensor = waterfill.quantize(problem, level, Rounding(states=states, rate_weight=0.0))
        e = error(problem, tensor)
        losses.append(float(np.sum((output @ e @ hessian) * e)))
        bits.append(conditional_bits(tensor))
    assert abs(bits[0] - bits[1]) < 0.1
    assert losses[0] < 0.4 * losses[1]  # conditional against marginal variance at rho 0.9: a factor of 5 at most


def test_row_feedback_gives_the_predicted_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a high rate the loss is that of independent uniform errors: c² / 12 for every weight."""
    generator = np.random.default_rng(4)
    weight = generator.standard_normal((150, 140))
    hessian, output = correlated(140, generator), correlated(150, generator)
    problem = waterfill.prepare(weight, "mlp", hessian, output, 1e-6)
    tensor = waterfill.quantize(problem, -8.0, Rounding(states=0, rate_weight=0.0, resolution=256))
    e = error(problem, tensor)[:, problem.order]
    damped = output + waterfill.OUTPUT_DAMPING * np.mean(np.diag(output)) * np.eye(150)
    loss = float(np.sum((damped @ e @ (problem.lower @ problem.lower.T)) * e)) / weight.size
    assert loss == pytest.approx(4.0**-8 / 12, rel=0.05)


def test_dead_and_constant_inputs_are_survived() -> None:
    generator = np.random.default_rng(5)
    weight = generator.standard_normal((12, 10))
    x = generator.standard_normal((500, 10))
    x[:, 3] = 0.0  # a unit that never fires
    x[:, 4] = x[:, 5]  # two that always agree
    weight[2] = 0.0
    problem = waterfill.prepare(weight, "mlp", x.T @ x / 500, np.ones(12), 1e-3)
    tensor = waterfill.quantize(problem, -3.0, Rounding())
    assert np.abs(tensor.symbols).max() < 1000
    assert np.isfinite(dequantize(tensor).numpy()).all()
    assert error_feedback.loss(error(problem, tensor), x.T @ x / 500) < 0.1 * error_feedback.loss(weight, x.T @ x / 500)


def test_columns_are_rounded_by_what_their_inputs_weigh_and_stored_as_in_the_matrix() -> None:
    """What is rounded last, at the first positions, weighs most; a matrix with its columns in another order has the
    same symbols and scales there."""
    generator = np.random.default_rng(6)
    weight, hessian = generator.standard_normal((40, 30)), correlated(30, generator)
    problem = waterfill.prepare(weight, "mlp", hessian, np.ones(40), 1e-6)
    assert np.all(np.diff(np.diag(hessian)[problem.order]) < 0)
    np.testing.assert_array_equal(problem.order[problem.positions], np.arange(30))
    tensor = waterfill.quantize(problem, -3.0, Rounding())
    assert error_feedback.loss(weight - dequantize(tensor).double().numpy(), hessian) < 0.02 * error_feedback.loss(
        weight, hessian
    )
    mixed = generator.permutation(30)
    other = waterfill.prepare(weight[:, mixed], "mlp", hessian[np.ix_(mixed, mixed)], np.ones(40), 1e-6)
    found = waterfill.quantize(other, -3.0, Rounding())
    np.testing.assert_array_equal(found.symbols, tensor.symbols[:, mixed])
    np.testing.assert_array_equal(found.col_scale, tensor.col_scale[mixed])
    np.testing.assert_array_equal(waterfill.classes(other, found), waterfill.classes(problem, tensor)[:, mixed])
