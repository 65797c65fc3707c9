"""The part of `quantize` that chooses steps: by bits per role, or by what every matrix costs under a byte target."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pgolf.codec import container
from pgolf.model.gpt import GPT
from pgolf.quant import allocate, methods, waterfill
from pgolf.quant.allocate import Matrices, Plan, Rounds, Share
from pgolf.quant.divergence import Divergence
from pgolf.quant.hessian import Calibration
from pgolf.quant.progressive_rounding import Gradual
from pgolf.quantized.tensors import QuantizedModel
from stages.context import StageBuild, StageContext

CHOOSING_WORK = 3e10
"""Weights times tokens of one divergence measurement at most: a model of 36M weights is measured on 800 tokens, not
16,384. Divergence is a low-noise measure, and there is one measurement per matrix."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Train tokens, batches of token ids (B, T), for each use."""

    calibrating: Sequence[Tensor] = ()
    choosing: Sequence[Tensor] = ()
    """To measure sensitivity on: none of those that calibration saw."""
    teaching: Sequence[Tensor] = ()
    """One batch for each step of distillation."""


@dataclass(frozen=True, eq=False)
class Material:
    """What choosing works on."""

    model: GPT
    weights: Mapping[str, Tensor]  # float32 on the CPU, by parameter name
    calibration: Mapping[str, Calibration]
    samples: Samples
    header: Mapping[str, Any]


def choose(context: StageContext, build: StageBuild, material: Material) -> QuantizedModel:
    """Quantize with `waterfill` or `trellis`. Raises PgolfError for a target that cannot be reached."""
    settings = context.config.quantize
    roles = material.model.matrix_roles()
    controls = methods.control_tensors(material.weights, roles)
    rounding = waterfill.Rounding(
        states=settings.trellis_states if settings.method == "trellis" else 0,
        rate_weight=settings.rate_weight,
        resolution=settings.resolution,
    )
    problems = {
        name: waterfill.prepare(
            material.weights[name].double().numpy(),
            role,
            material.calibration[name].curvature,
            material.calibration[name].output,
            settings.damping,
        )
        for name, role in roles.items()
    }
    plan = Plan(problems, rounding, context.runtime.threads)
    if settings.target_bytes:
        matrices = _by_target(context, build, material, plan, controls)
    else:
        matrices = _by_role(context, plan)
    if material.samples.teaching:
        matrices, controls = distill(context, material, plan)
    return QuantizedModel(matrices, controls, material.header)


def _by_role(context: StageContext, plan: Plan) -> Matrices:
    roles = {problem.role for problem in plan.problems.values()}
    for role in sorted(roles):
        names = [name for name, problem in plan.problems.items() if problem.role == role]
        log2_c = plan.log2_c_for_bits(context.config.quantize.role_bits(role), names)
        plan.offsets |= dict.fromkeys(names, log2_c)
    with context.reporter.progress("quantize", total=2) as bar:
        plan.refit(plan.round(0.0))
        bar.update(1)
        return plan.round(0.0)


def _by_target(
    context: StageContext,
    build: StageBuild,
    material: Material,
    plan: Plan,
    controls: Mapping[str, Tensor],
) -> Matrices:
    settings, names = context.config.quantize, list(plan.problems)
    start_bits = 8.0 * settings.target_bytes / plan.weights
    if not settings.fisher:
        for name in names:
            plan.offsets[name] = plan.log2_c_for_bits(start_bits, [name])
    log2_c = plan.log2_c_for_bits(start_bits, names)
    shares: list[Share] = []
    if settings.sensitivity_tokens:
        with context.reporter.progress("sensitivity", total=len(names)) as bar:
            shares = allocate.measure(plan, Divergence(material.model, material.samples.choosing), log2_c, bar.update)
        log2_c = plan.log2_c_for_bits(start_bits, names)
    plan.refit(plan.round(log2_c))
    matrices, plan.last_log2_c = _land(context, plan, controls, material.header, log2_c)
    build.details["allocation"] = [dataclasses.asdict(share) for share in shares]
    _show_shares(context, shares, matrices)
    return matrices


def _land(
    context: StageContext, rounds: Rounds, controls: Mapping[str, Tensor], header: Mapping[str, Any], octaves: float
) -> tuple[Matrices, float]:
    target, coder = context.config.quantize.target_bytes, context.config.package.coder

    def size(matrices: Matrices) -> int:
        return len(container.encode(QuantizedModel(matrices, controls, header), coder))

    with context.reporter.progress("byte target", total=target) as bar:
        return allocate.land(rounds, target, size, octaves, lambda found: bar.update(found, note=f"{found:,} bytes"))


def distill(context: StageContext, material: Material, plan: Plan) -> tuple[Matrices, dict[str, Tensor]]:
    """Round share by share with training in between; the last share lands on the byte target, if there is one."""
    settings, batches = context.config.quantize, material.samples.teaching
    gradual = Gradual(material.model, plan, context.config.optim, settings.distill_lr)
    shares = (*settings.distill_shares, 1.0)
    ends = [round(len(batches) * (number + 1) / len(shares)) for number in range(len(shares))]
    steps = itertools.count(1)
    with context.reporter.progress("distill", total=len(batches)) as bar:
        for share, start, stop in zip(shares, (0, *ends), ends, strict=False):
            gradual.round_share(share)

            def on_step(divergence: float, share: float = share) -> None:
                bar.update(next(steps), note=f"{share:.0%} rounded, {divergence:.5f} nats/token")

            gradual.train(batches[start:stop], start / len(batches), stop / len(batches), on_step)
    controls = {name: methods.half_or_float(tensor) for name, tensor in gradual.controls().items()}
    if not settings.target_bytes:
        return gradual.round(0.0), controls
    return _land(context, gradual, controls, material.header, 0.0)[0], controls


def cut(batches: Sequence[Tensor], count: int) -> list[Tensor]:
    """`batches` (B, T) of equal T as `count` ones of about equal B, over again where there are too few sequences."""
    rows = torch.cat(list(batches))
    each = max(1, len(rows) // count)
    parts = rows.split(each)
    return [parts[number % max(1, len(rows) // each)] for number in range(count)]


def choosing_tokens(settings_tokens: int, parameters: int) -> int:
    """Tokens to measure sensitivity on: as configured, fewer for a large model."""
    return min(settings_tokens, max(1, int(CHOOSING_WORK / max(1, parameters))))


def _show_shares(context: StageContext, shares: Sequence[Share], matrices: Matrices) -> None:
    if shares:
        context.reporter.table(
            "what each matrix was given, and why",
            ("matrix", "role", "weights", "alone it costs", "share", "step moved by", "bits"),
            _share_rows(shares, matrices),
        )


def _share_rows(shares: Sequence[Share], matrices: Matrices) -> list[tuple[str, ...]]:
    total = sum(share.divergence for share in shares)
    return [
        (
            share.name,
            share.role,
            f"{share.weights:,}",
            f"{share.divergence:.5f} nats",
            f"{share.divergence / max(total, 1e-30):.1%}",
            f"{share.offset:+.2f} octaves",
            f"{methods.entropy(matrices[share.name].symbols):.2f}",
        )
        for share in shares
    ]
