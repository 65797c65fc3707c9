"""Low-rank correction of the residual (LQER, arXiv 2402.02446) against spending the same bytes on steps.

    python benchmarks/quantize/lqer.py artifacts/mini/ema-finalize [--tokens 16384] [--calibration-tokens 16384]

Quantized as shipped at two rates, then the residual of each matrix gets its best correction of rank r in the metric of
the loss (the singular vectors of Uᵀ (W − Ŵ) L, see pgolf/quant/waterfill.py). The correction is flattered: its factors
stay in floating point and are charged three bits a value, less than the record's own mean of 2 and 4 with their scales.
KL to the float model is divided by that of plain quantization at the same bytes, interpolated on its curve: above 1
the correction loses. `largest`: only the three matrices of the largest residual, as the record has it.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from quantization import Case, decoded, judge, plan_of, prepare
from torch import Tensor

from pgolf.codec import container
from pgolf.quant.allocate import Plan
from pgolf.quant.waterfill import Problem
from pgolf.quantized.tensors import QuantizedModel

CURVE = (2.2, 2.7, 3.2, 3.7)
RATES = (2.2, 3.2)
RANKS = (1, 4, 16)
FACTOR_BITS = 3.0


def factors(problem: Problem, error: np.ndarray, rank: int) -> tuple[np.ndarray, float]:
    """The part of `error` that a correction of this rank takes away, and its largest singular value over the edge of
    white noise of the same energy (Marchenko and Pastur)."""
    upper = np.diag(problem.row_factor)
    if len(problem.row_carry):
        upper = upper + problem.row_carry * problem.row_factor
    white = upper.T @ error[:, problem.order] @ problem.lower
    left, values, right = np.linalg.svd(white, full_matrices=False)
    edge = np.sqrt(np.mean(white**2)) * (np.sqrt(white.shape[0]) + np.sqrt(white.shape[1]))
    low = (left[:, :rank] * values[:rank]) @ right[:rank]
    part = np.linalg.solve(upper.T, low) @ np.linalg.inv(problem.lower)
    return part[:, problem.positions], float(values[0] / edge)


def corrected(case: Case, plan: Plan, plain: dict[str, Tensor], names: list[str], rank: int) -> tuple[dict, float]:
    """The decoded model with its corrections, and the bytes that those are charged."""
    weights, size = dict(plain), 0.0
    for name in names:
        part, _ = factors(plan.problems[name], case.weights[name].double().numpy() - plain[name].double().numpy(), rank)
        weights[name] = plain[name] + torch.from_numpy(part).float()
        size += rank * sum(part.shape) * FACTOR_BITS / 8
    return weights, size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="+", type=Path)
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--calibration-tokens", type=int, default=16_384)
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    for path in arguments.stages:
        case = prepare(path, arguments.tokens, arguments.calibration_tokens, arguments.threads)
        plan = plan_of(case)
        names = list(plan.problems)
        curve, models = [], {}
        for bits in CURVE:
            log2_c = plan.log2_c_for_bits(bits, names)
            plan.refit(plan.round(log2_c))
            matrices = plan.round(log2_c)
            models[bits] = decoded(matrices, case.controls)
            size = len(container.encode(QuantizedModel(matrices, case.controls)))
            curve.append((size, judge(case, size, models[bits]).kl))
        sizes, logs = [size for size, _ in curve], np.log([kl for _, kl in curve])
        print(f"{case.name}: " + "; ".join(f"{size:,} bytes KL {kl:.5f}" for size, kl in curve), flush=True)
        for bits in RATES:
            plain, base = models[bits], sizes[CURVE.index(bits)]
            errors = {name: case.weights[name].double().numpy() - plain[name].double().numpy() for name in names}
            over = sorted(((factors(plan.problems[name], errors[name], 1)[1], name) for name in names), reverse=True)
            print(f"  {bits} bits; singular values over the edge of noise: "
                  + ", ".join(f"{name} {ratio:.2f}" for ratio, name in over[:4]))  # fmt: skip
            largest = sorted(names, key=lambda name: -float(np.sum(errors[name] ** 2)))[:3]
            for what, chosen in (("all", names), ("largest", largest)):
                for rank in RANKS:
                    weights, size = corrected(case, plan, plain, chosen, rank)
                    kl = judge(case, base, weights).kl
                    expected = float(np.exp(np.interp(base + size, sizes, logs)))
                    told = "beyond the curve" if base + size > sizes[-1] else f"{kl / expected:.3f} of plain"
                    print(f"    {what}, rank {rank}: +{size:,.0f} bytes, KL {kl:.5f}, {told}", flush=True)


if __name__ == "__main__":
    main()
