"""The quantization recipe: a float model and train tokens in, a quantized model and its reports out.

`quantize` is `calibrate` and `finish` in one call. A sweep over byte targets calls `calibrate` once and `finish` for
each target; every result equals that of a single call. All arithmetic is float32 or better on every device. The
model runs on the fast paths that it comes with; choosing them is the caller's.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from pgolf.codec.container import Choices
from pgolf.config import Config
from pgolf.model.gpt import GPT
from pgolf.progress import Reporter
from pgolf.quant import calibration_data, hessian, methods, precision, principal_axes, tensor_report
from pgolf.quant.allocate import Share
from pgolf.quant.calibrated_model import CalibratedModel
from pgolf.quant.controls import float_weights
from pgolf.quant.hessian import Calibration
from pgolf.quant.tensor_report import TensorReport
from pgolf.quantized.tensors import QuantizedModel
from pgolf.runtime import Runtime
from pgolf.tokens.shards import TokenStream


@dataclass(frozen=True, eq=False)
class Result:
    model: QuantizedModel
    source: CalibratedModel
    allocation: Sequence[Share]
    """Bits allocated per matrix; empty without a byte target."""
    distill_steps: int
    """As in `Rounded`."""
    choices: Choices | None
    """As in `Rounded`."""

    def tensor_reports(self) -> list[TensorReport]:
        """One report per matrix."""
        return tensor_report.report(self.source.weights, self.model, self.source.calibration)


def quantize(
    model: GPT,
    config: Config,
    stream: TokenStream | None,
    length: int,
    runtime: Runtime,
    reporter: Reporter,
    target_bytes: int = 0,
) -> Result:
    """Quantize a float model with `config.quantize`; the model keeps its weights.

    stream: train tokens to calibrate on, cut into sequences of `length` tokens; None where there are none.
    target_bytes: the most that the coded model may take, 0 for bits per role; bytes of other files are the caller's to
    subtract. Raises PgolfError for weights that are not finite, for a method whose needs are not met, and for a target
    that cannot be reached.
    """
    return finish(calibrate(model, config, stream, length, runtime, reporter), target_bytes)


def calibrate(
    model: GPT,
    config: Config,
    stream: TokenStream | None,
    length: int,
    runtime: Runtime,
    reporter: Reporter,
    made: tuple[Mapping[str, Calibration], int] | None = None,
) -> CalibratedModel:
    """The model with its statistics on train tokens: everything that no byte target changes. Arguments: `quantize`.

    made: the statistics, and of how many tokens they are, where training collected them inside its clock.
    """
    begun = time.monotonic()
    method, settings = methods.of(config.quantize), config.quantize
    if made is None:
        model = principal_axes.turned(model)
    weights, roles = float_weights(model), set(model.matrix_roles().values())
    statistics, tokens = made or ({}, 0)
    if made is not None:
        pass
    elif stream is None:
        reporter.message("no calibration tokens in reach: output errors are not measured")
    else:
        drawn = calibration_data.batches(stream, settings.calibration_tokens, length, choosing=False, seed=config.seed)
        batches = [batch.to(runtime.device) for batch in drawn]
        tokens = sum(map(torch.numel, batches))
        gradients = settings.fisher and method.chooses_steps
        with reporter.progress("calibrate", total=tokens) as bar:
            statistics = hessian.calibrate(model, batches, gradients, config.seed, bar.update)
    return CalibratedModel(
        model=model,
        config=config,
        weights=weights,
        stream=stream,
        length=length,
        threads=runtime.threads,
        reporter=reporter,
        bits={role: method.role_bits(settings, role) for role in roles},
        calibration_tokens=tokens,
        calibration=statistics,
        calibration_seconds=time.monotonic() - begun,
    )


def finish(source: CalibratedModel, target_bytes: int) -> Result:
    """Round a calibrated model, to at most `target_bytes` of coded model where that is not 0."""
    with precision.float32(source.model):
        rounded = methods.of(source.config.quantize).quantize(source, target_bytes)
    model = QuantizedModel(rounded.matrices, rounded.controls, source.header)
    return Result(model, source, rounded.allocation, rounded.distill_steps, rounded.choices)
