"""Methods `waterfill` and `trellis`: steps from bits per role, or from measured sensitivity under a byte target."""

import dataclasses
import itertools
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from pgolf.codec import container
from pgolf.quant import allocate
from pgolf.quant.allocate import TOLERANCE, Matrices, Plan, Rounds, Share
from pgolf.quant.calibrated_model import CalibratedModel, Rounded
from pgolf.quant.controls import choose_steps, split
from pgolf.quant.divergence import Divergence
from pgolf.quant.progressive_rounding import Gradual
from pgolf.quant.waterfill import Rounding
from pgolf.quantized.tensors import QuantizedModel

CONTROL_TOKENS = 2048  # of each measurement of a control tensor; four times as many move a step by a few percent
_SIMILAR = 0.05  # difference of two sizes up to which the coder's choices for the one are taken for the other, too
_AFTER_ALL = 0.04  # of the distillation steps, once all is rounded: gains and norms learn little more by then
_TIMED_STEPS = 12  # of distillation, before it begins, to know how many fit into `quantize.seconds`; 4 were too few
_SLOWER = 1.1  # margin: in one run steps took 15% longer than those timed before them
_MOST_BITS = 16  # coded bits per weight, as in `quantize.bits`; finer steps would only fill the target with noise


def waterfill(source: CalibratedModel, target_bytes: int) -> Rounded:
    """Steps per column and row by waterfilling; the scalar rounder."""
    return search(source, target_bytes, states=0)


def trellis(source: CalibratedModel, target_bytes: int) -> Rounded:
    """Steps per column and row by waterfilling; the trellis rounder."""
    return search(source, target_bytes, states=source.config.quantize.trellis_states)


def search(source: CalibratedModel, target_bytes: int, states: int) -> Rounded:
    """Choose all steps and round; `target_bytes` is the size of the coded model, 0: bits per role as configured.

    Raises PgolfError for a target that cannot be reached.
    """
    settings = source.config.quantize
    end = time.monotonic() - source.calibration_seconds + settings.seconds if settings.seconds else math.inf
    rounding = Rounding(states=states, rate_weight=settings.rate_weight, resolution=settings.resolution)
    plan = Plan(source.problems, rounding, source.threads)
    if (most := _MOST_BITS * plan.weights // 8) < target_bytes:
        source.reporter.message(f"{_MOST_BITS} bits per weight are the most: {most:,} of {target_bytes:,} bytes")
        target_bytes = most
    shares, log2_c = _by_target(source, plan, target_bytes) if target_bytes else ([], _by_role(source, plan))
    matrices = plan.round(log2_c)
    plan.refit(matrices)
    steps: Mapping[str, float] = {}
    if settings.round_controls:
        distance = Divergence(source.model, source.batches(CONTROL_TOKENS, choosing=True))
        steps = choose_steps(distance, source.weights, matrices)
    controls: Mapping[str, Tensor] = source.controls
    aim = Aim(source, steps, target_bytes, final=not settings.distill_steps)
    begun = time.monotonic()
    if target_bytes:
        matrices, plan.last_log2_c = aim.land(plan, controls, log2_c)
    else:
        matrices = plan.round(log2_c)
    made = 0
    if settings.distill_steps:
        again = time.monotonic() - begun  # rounding once more takes no longer, however it is divided into shares
        aim = dataclasses.replace(aim, final=True)
        matrices, controls, made = distill(source, plan, aim, end - again)
    coded, left = split(controls, steps)
    return Rounded(matrices | coded, left, shares, made, aim.choices_of(matrices))


def _by_role(source: CalibratedModel, plan: Plan) -> float:
    """Set the offsets that give every role its bits; returns the common log2 c."""
    for role in sorted(set(source.roles.values())):
        names = [name for name, problem in plan.problems.items() if problem.role == role]
        plan.offsets |= dict.fromkeys(names, plan.log2_c_for_bits(source.bits[role], names))
    return 0.0


def _by_target(source: CalibratedModel, plan: Plan, target_bytes: int) -> tuple[list[Share], float]:
    """Set the offsets from measured sensitivity; returns the shares and a first guess of the common log2 c."""
    settings, names = source.config.quantize, list(plan.problems)
    start_bits = 8.0 * target_bytes / plan.weights
    if not settings.fisher:
        for name in names:
            plan.offsets[name] = plan.log2_c_for_bits(start_bits, [name])
    log2_c = plan.log2_c_for_bits(start_bits, names)
    shares: list[Share] = []
    if settings.sensitivity_tokens:
        with source.reporter.progress("sensitivity", total=len(names)) as bar:
            shares = allocate.measure(plan, source.divergence, log2_c, bar.update)
        log2_c = plan.log2_c_for_bits(start_bits, names)
    return shares, log2_c


@dataclass
class Aim:
    """A size of the coded model and how it is measured."""

    source: CalibratedModel
    control_steps: Mapping[str, float]
    target_bytes: int  # 0: none
    final: bool  # whether what lands is the result; else sizes may be a few bytes too large
    choices: container.Choices | None = None  # the coder's, for ...
    chosen_for: Matrices | None = None  # ... these matrices, ...
    chosen_at: int = 0  # ... a model of so many bytes

    def land(self, rounds: Rounds, controls: Mapping[str, Tensor], octaves: float) -> tuple[Matrices, float]:
        """All matrices at the finest steps that keep to the target, and their octaves; see `allocate.land`."""
        coded, left = split(controls, self.control_steps)

        def size(matrices: Matrices) -> int:
            return self._size(matrices, QuantizedModel(matrices | coded, left, self.source.header))

        with self.source.reporter.progress("byte target", total=self.target_bytes) as bar:
            return allocate.land(
                rounds, self.target_bytes, size, octaves, lambda found: bar.update(found, note=f"{found:,} bytes")
            )

    def choices_of(self, matrices: Matrices) -> container.Choices | None:
        """The coder's choices for the model with exactly these matrices, if they were made when it was measured."""
        return self.choices if self.chosen_for is matrices else None

    def _size(self, matrices: Matrices, model: QuantizedModel) -> int:
        """Bytes of the coded model, by the coder's choices for one of about that size where this is close enough: not
        where the final model lands."""
        coder = self.source.config.package.coder
        if self.choices is not None:
            found = len(container.encode(model, coder, self.choices))
            similar = abs(found - self.chosen_at) <= _SIMILAR * self.chosen_at
            lands = (1 - TOLERANCE) * self.target_bytes <= found <= self.target_bytes
            if similar and not (lands and self.final):
                return found
        self.choices = container.choose(model) if coder == "range" else None
        self.chosen_for = matrices
        self.chosen_at = len(container.encode(model, coder, self.choices))
        return self.chosen_at


def distill(
    source: CalibratedModel, plan: Plan, aim: Aim | None = None, end: float = math.inf
) -> tuple[Matrices, dict[str, Tensor], int]:
    """Round share by share with training in between, from the steps at `plan.last_log2_c`.

    aim: where the last share lands; end: when training should be over, by `time.monotonic`. Returns the matrices, the
    trained control tensors, not rounded, and the number of training steps.
    """
    settings = source.config.quantize
    gradual = Gradual(source.model, plan, source.config.optim, settings.distill_lr)
    planned = settings.distill_steps
    if end < math.inf:
        each = _SLOWER * gradual.seconds_per_step(source.teaching(_TIMED_STEPS))
        planned = min(planned, max(1, int((end - time.monotonic()) / each)))
        if planned < settings.distill_steps:
            source.reporter.message(
                f"{planned} of {settings.distill_steps} distillation steps fit into quantize.seconds = "
                f"{settings.seconds:g}"
            )
    batches = source.teaching(planned)
    shares = (*settings.distill_shares, 1.0)
    each = (1 - _AFTER_ALL) * len(batches) / max(1, len(shares) - 1)
    ends = [*(round(each * number) for number in range(1, len(shares))), len(batches)]
    steps = itertools.count(1)
    with source.reporter.progress("distill", total=len(batches)) as bar:
        for share, start, stop in zip(shares, (0, *ends), ends, strict=False):
            gradual.round_share(share)

            def on_step(divergence: float, share: float = share) -> None:
                bar.update(next(steps), note=f"{share:.0%} rounded, {divergence:.5f} nats/token")

            gradual.train(batches[start:stop], start / len(batches), stop / len(batches), on_step)
    trained = gradual.controls()
    if aim is None or not aim.target_bytes:
        return gradual.round(0.0), trained, planned
    return aim.land(gradual, trained, 0.0)[0], trained, planned
