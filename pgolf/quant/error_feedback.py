"""Rounding with error feedback (GPTQ, arXiv 2210.17323; LDLQ, arXiv 2307.13304), columns from last to first.

With H = L Lᵀ the loss of a layer is ‖(W − Ŵ) L‖², and column j is rounded toward the target
t_j = w_j + Σ_{i>j} (w_i − ŵ_i) L_ij / L_jj, whose squared errors times L_jj² sum to that loss exactly. This form needs
no inverse of H. The factor is float64; nothing is clipped (a clipped error is pushed into other columns).
"""

from collections.abc import Callable

import numpy as np

from pgolf.errors import PgolfError
from pgolf.quant.grid import Floats

BLOCK = 128  # columns whose feedback is applied one by one before one matrix product carries it to the rest

Rounder = Callable[[int, Floats], Floats]
"""(column, targets of shape (rows,)) -> the decoded values that the rounder has chosen, (rows,)."""


def factor(hessian: Floats, damping: float) -> tuple[Floats, float]:
    """Lower Cholesky factor of `hessian` (n, n) with `damping` times the mean diagonal added, and the share added.

    Features that never fire are damped like the others. A factorization that fails is tried again with ten times the
    damping; raises PgolfError when even the diagonal alone would not do.
    """
    mean = float(np.mean(np.diag(hessian)))
    if not np.isfinite(mean):
        raise PgolfError("a calibration Hessian holds NaN or infinity: the model does not run on these tokens")
    if mean <= 0:
        return np.eye(len(hessian)), 0.0
    share = damping
    while share <= 10.0:
        damped = hessian + share * mean * np.eye(len(hessian))
        try:
            return np.asarray(np.linalg.cholesky(damped), np.float64), share
        except np.linalg.LinAlgError:
            share *= 10.0
    raise PgolfError(
        "a calibration Hessian cannot be factored at any damping; use more --set quantize.calibration_tokens"
    )


def quantize_columns(weight: Floats, lower: Floats, rounder: Rounder) -> Floats:
    """Decoded weights (rows, columns) after feeding every column's error to the columns before it.

    weight: (rows, columns); lower: (columns, columns), the factor of `factor`; rounder: called once per column, last
    column first.
    """
    columns = weight.shape[1]
    carry = lower / np.diag(lower)  # (n, n): M_ij = L_ij / L_jj
    targets = weight.copy()
    decoded = np.empty_like(weight)
    for stop in range(columns, 0, -BLOCK):
        start = max(0, stop - BLOCK)
        errors = np.zeros((weight.shape[0], stop - start))  # (rows, block)
        for j in range(stop - 1, start - 1, -1):
            local = j - start
            target = targets[:, j] + errors[:, local + 1 :] @ carry[j + 1 : stop, j]
            decoded[:, j] = rounder(j, target)
            errors[:, local] = weight[:, j] - decoded[:, j]
        targets[:, :start] += errors @ carry[start:stop, :start]
    return decoded


def loss(error: Floats, hessian: Floats) -> float:
    """tr(E H Eᵀ) for an error (rows, columns) under `hessian` (columns, columns)."""
    return float(np.sum((error @ hessian) * error))
