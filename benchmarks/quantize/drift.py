"""Drift correction: aiming every matrix at the original's outputs from the inputs that the quantized model gives it.

    python benchmarks/quantize/drift.py artifacts/mini/ema-finalize [--tokens 16384] [--calibration-tokens 16384]

Matrices are quantized in the model's order. With x the original's input and y that of the model whose earlier matrices
are quantized already, W + W E[(x − y) yᵀ] (E[y yᵀ] + δ)⁻¹ gives W x from y best (WaterSIC, arXiv 2603.04956, step 3,
without its term for the residual stream); it is quantized in place of W, under the Hessians and steps that ship. δ is a
share of the mean diagonal; large ones lead back to W. The embedding, used at both ends, stays as it is. KL to the float
model is set against the plain curve at the same bytes: below 1 the correction gains.
"""

import argparse
import copy
from pathlib import Path

import numpy as np
import torch
from quantization import Case, decoded, judge, plan_of, prepare
from torch import Tensor

from pgolf.codec import container
from pgolf.model.gpt import GPT
from pgolf.quant import waterfill
from pgolf.quant.allocate import Plan
from pgolf.quantized.tensors import QuantizedModel, dequantize

CURVE = (2.0, 2.5, 3.0, 3.5)
RATES = (2.5, 3.0)
SHARES = (0.01, 0.1, 1.0)


def inputs(model: GPT, name: str, batches: list[Tensor]) -> Tensor:
    """Inputs of the matrix `name` on these tokens: (passes * tokens, columns) float64."""
    seen: list[Tensor] = []
    module = model.get_submodule(name.rpartition(".")[0])
    handle = module.register_forward_hook(lambda _, given, __: seen.append(given[0].detach().flatten(0, -2)))
    with torch.no_grad():
        for batch in batches:
            model.hidden(batch)
    handle.remove()
    return torch.cat(seen).double()


def drifted(case: Case, plan: Plan, log2_c: float, batches: list[Tensor], share: float) -> dict:
    """All matrices, each fitted to the original's outputs on the original's inputs."""
    original, student = case.judging.model, copy.deepcopy(case.judging.model)
    parameters, matrices = dict(student.named_parameters()), {}
    for name, problem in plan.problems.items():
        aimed = problem
        if problem.role != "embed":
            x, y = inputs(original, name, batches), inputs(student, name, batches)
            both = (y.T @ y).numpy()
            ridge = share * np.mean(np.diag(both)) * np.eye(len(both))
            weight = problem.weight[:, problem.positions]
            moved = weight @ ((x - y).T @ y).numpy() @ np.linalg.inv(both + ridge)
            aimed = waterfill.prepare(
                weight + moved,
                problem.role,
                case.source.calibration[name].curvature,
                case.source.calibration[name].output,
                1e-3,
            )
        tensor = waterfill.quantize(aimed, log2_c + plan.offsets[name], plan.rounding, plan.probabilities)
        matrices[name] = tensor
        with torch.no_grad():
            parameters[name].copy_(dequantize(tensor))
    return matrices


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

        def point(matrices: dict, case: Case = case) -> tuple[int, float]:
            size = len(container.encode(QuantizedModel(matrices, case.controls)))
            return size, judge(case, size, decoded(matrices, case.controls)).kl

        curve, tables = [], {}
        for bits in CURVE:
            log2_c = plan.log2_c_for_bits(bits, names)
            plan.refit(plan.round(log2_c))
            tables[bits] = plan.probabilities
            curve.append(point(plan.round(log2_c)))
        print(f"{case.name}: " + "; ".join(f"{size:,} bytes KL {kl:.5f}" for size, kl in curve), flush=True)
        for bits in RATES:
            plan.probabilities = tables[bits]
            for share in SHARES:
                matrices = drifted(case, plan, plan.log2_c_for_bits(bits, names), case.source.divergence.batches, share)
                size, kl = point(matrices)
                expected = float(np.exp(np.interp(size, [s for s, _ in curve], np.log([k for _, k in curve]))))
                print(
                    f"  {bits} bits, ridge {share:g}: {size:,} bytes, KL {kl:.5f}, {kl / expected:.3f} of plain",
                    flush=True,
                )


if __name__ == "__main__":
    main()
