"""Input and output of a quantization method.

The input is a float model, its settings, and everything measured on train tokens. What does not depend on a byte target
(calibration, factored Hessians, the float model's own outputs) is computed once, so one `CalibratedModel` serves a
sweep of targets.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pgolf import config as configs
from pgolf.codec.container import Choices
from pgolf.config import Config
from pgolf.model.gpt import GPT
from pgolf.progress import Reporter
from pgolf.quant import calibration_data, controls, waterfill
from pgolf.quant.allocate import Share
from pgolf.quant.divergence import Divergence
from pgolf.quant.hessian import Calibration
from pgolf.quant.waterfill import Problem
from pgolf.quantized.tensors import QuantizedTensor
from pgolf.tokens.shards import TokenStream

CHOOSING_WORK = 3e10
"""Weights times tokens of one divergence measurement at most: a model of 36M weights is measured on 800 tokens, not
16,384. Divergence has little noise, and there is one measurement per matrix."""


@dataclass(frozen=True, eq=False)
class CalibratedModel:
    model: GPT
    config: Config
    weights: Mapping[str, Tensor]  # float32 on the CPU, by parameter name
    stream: TokenStream | None  # train tokens; None: none in reach
    length: int  # tokens of one sequence
    threads: int
    reporter: Reporter
    bits: Mapping[str, float]  # by role, the method's default where `quantize.bits` names none
    calibration_tokens: int
    calibration: Mapping[str, Calibration]  # by matrix; empty without tokens
    calibration_seconds: float = 0.0  # of wall time

    @cached_property
    def roles(self) -> dict[str, str]:
        return self.model.matrix_roles()

    @property
    def header(self) -> dict[str, Any]:
        """The model's entry in the header of the quantized file."""
        return {"model": configs.to_dict(self.config)["model"]}

    @cached_property
    def controls(self) -> dict[str, Tensor]:
        """Every tensor that is not a matrix, as it is stored."""
        return controls.control_tensors(self.weights, self.roles)

    def batches(self, tokens: int, choosing: bool = False) -> list[Tensor]:
        """About `tokens` train tokens on the model's device; `choosing`: of the part that calibration does not read."""
        assert self.stream is not None, "methods that read train tokens need Hessians"
        device = next(self.model.parameters()).device
        drawn = calibration_data.batches(self.stream, tokens, self.length, choosing=choosing, seed=self.config.seed)
        return [batch.to(device) for batch in drawn]

    @cached_property
    def problems(self) -> dict[str, Problem]:
        """Every matrix with its Hessians factored."""
        return {
            name: waterfill.prepare(
                self.weights[name].double().numpy(),
                role,
                self.calibration[name].curvature,
                self.calibration[name].output,
                self.config.quantize.damping,
            )
            for name, role in self.roles.items()
        }

    @cached_property
    def divergence(self) -> Divergence:
        """Measures changed weights on tokens that calibration does not read, fewer of them for a large model."""
        parameters = sum(map(torch.numel, self.weights.values()))
        tokens = min(self.config.quantize.sensitivity_tokens, max(1, int(CHOOSING_WORK / max(1, parameters))))
        return Divergence(self.model, self.batches(tokens, choosing=True))

    def teaching(self, steps: int) -> list[Tensor]:
        """One batch (B, T) per step of distillation, of about equal B; sequences repeat where there are too few."""
        rows = torch.cat(self.batches(steps * max(self.config.quantize.distill_tokens, self.length)))
        each = max(1, len(rows) // steps)
        parts = rows.split(each)
        return [parts[number % max(1, len(rows) // each)] for number in range(steps)]


@dataclass(frozen=True, eq=False)
class Rounded:
    """The output of a quantization method."""

    matrices: Mapping[str, QuantizedTensor]
    controls: Mapping[str, Tensor]
    allocation: Sequence[Share] = field(default_factory=tuple)
    """Bits allocated per matrix, with a byte target and `quantize.sensitivity_tokens` above 0."""
    distill_steps: int = 0
    """Steps of distillation made: fewer than planned where `quantize.seconds` left no time for more."""
    choices: Choices | None = None
    """The coder's for this very model, where it was measured to land on a target; they are expensive to find."""


Quantizer = Callable[[CalibratedModel, int], Rounded]
"""A quantization method: a model and the bytes that its coded form may take (0: no target), to integers."""
