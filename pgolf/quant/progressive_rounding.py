"""Progressive rounding: round some columns of every matrix, then train the remaining float weights, and repeat.

The columns of every matrix are rounded in groups, those whose inputs weigh least first (`waterfill`); after each
share all that is left (the other columns, gains, norms, mixes) is trained on the mean KL divergence to the unquantized
model, over train tokens. Feedback is the linear answer to a rounding error inside one matrix; the training that follows
is the answer of the whole model, and repairs a third of what the feedback leaves or more. The order by shares is of
incremental network quantization (arXiv 1702.03044), the objective that of distillation (QUANTIZATION 7.2). The number
of steps is fixed beforehand, so that the result depends on nothing but its inputs, unless a time is set.
"""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pgolf.config.optim import OptimConfig
from pgolf.model.gpt import GPT
from pgolf.optim.adam import FlatAdam
from pgolf.optim.flat import FlatParameters, parameter_groups
from pgolf.optim.muon import Muon
from pgolf.quant import divergence, waterfill
from pgolf.quant.allocate import Matrices, Plan, in_parallel
from pgolf.quant.grid import Floats
from pgolf.quant.waterfill import Problem, Rounding, Steps
from pgolf.quantized.tensors import QuantizedTensor, dequantize

STEP_RATE = 0.036  # of the mean step, the learning rate of Adam: 0.002 with preset `mini`, where 0.003 was worse
MUON_RATE = 2.0  # Muon's learning rate over Adam's: the first pair tried; doubling both lost a twentieth of the gain
_MOMENTUM, _BETAS = 0.9, (0.9, 0.95)
_ADAM_GROUPS = "embed", "scalar"


@dataclass
class _Part:
    """One matrix on its way; columns in the order of its problem."""

    problem: Problem
    steps: Steps
    symbols: np.ndarray  # (rows, columns), zero where not yet rounded
    columns: slice  # the share rounded last
    weight: Floats  # (rows, columns) as they were before that


class Gradual:
    """A model on its way from floating point to integers."""

    def __init__(self, model: GPT, plan: Plan, optim: OptimConfig, lr: float) -> None:
        """model: the unquantized one, left as it is; plan: its steps, at `plan.last_log2_c`; optim: how training
        orthogonalized; lr: learning rate of the first step, 0: STEP_RATE times the geometric mean of all steps."""
        self._model, self._plan = model, plan
        self._student = copy.deepcopy(model).train()
        self._student.set_progress(1.0)
        self._flat = FlatParameters(self._student, parameter_groups(self._student, model.matrix_roles()))
        self._optim = optim
        self._forget()
        self._free = torch.ones_like(self._flat.data)  # 0 where a weight is rounded
        self._fixed = torch.zeros_like(self._flat.data)  # the rounded weights, 0 elsewhere
        self._parts: dict[str, _Part] = {}
        for name, problem in plan.problems.items():
            rows, columns = problem.weight.shape
            steps = waterfill.choose_steps(problem, plan.last_log2_c + plan.offsets[name], plan.rounding.resolution)
            symbols = np.zeros((rows, columns), np.int32)
            self._parts[name] = _Part(problem, steps, symbols, slice(columns, columns), problem.weight)
        self.lr = lr or STEP_RATE * self.mean_step

    @property
    def mean_step(self) -> float:
        """Geometric mean of the steps of all weights in matrices."""
        parts = self._parts.values()
        octaves = sum(p.symbols.size * float(p.steps.rows.mean() + p.steps.columns.mean()) for p in parts)
        return float(2.0 ** (octaves / sum(p.symbols.size for p in parts)))

    def _forget(self) -> None:
        """Begin with the optimizers anew."""
        self._muon = Muon(self._flat, self._optim)
        self._adam = [FlatAdam(self._flat, group, _BETAS, self._optim.adam_epsilon) for group in _ADAM_GROUPS]

    def seconds_per_step(self, batches: Sequence[Tensor]) -> float:
        """Wall seconds of a training step, the mean over two batches or more without the first; the steps change
        nothing."""
        lr, ends = self.lr, list[float]()
        self.lr = 0.0
        self.train(batches, 0.0, 1.0, lambda _: ends.append(time.perf_counter()))
        self.lr = lr
        self._forget()
        return (ends[-1] - ends[0]) / (len(ends) - 1)

    def round_share(self, share: float) -> None:
        """Round columns until `share` of every matrix is done; the error is fed back to the remaining columns."""
        for name, part in self._parts.items():
            stop, columns = part.columns.start, part.problem.weight.shape[1]
            part.columns = slice(min(stop, columns - round(share * columns)), stop)
            weight = self._flat.view(self._flat.data, name).double().cpu().numpy()
            part.weight = np.take(weight, part.problem.order, axis=1)
        plan = self._plan
        rounded = in_parallel(
            lambda part: _round(part, part.steps, plan, plan.rounding), self._parts.values(), plan.threads
        )
        found = dict(zip(self._parts, rounded, strict=True))
        for name, (tensor, free) in found.items():
            part, view = self._parts[name], self._flat.view(self._flat.data, name)
            part.symbols = np.take(tensor.symbols, part.problem.order, axis=1)
            left, done = np.split(part.problem.order, [part.columns.start])
            view[:, left] = torch.from_numpy(free).to(view)
            view[:, done] = dequantize(tensor)[:, done].to(view)
            self._flat.view(self._free, name)[:, done] = 0.0
        torch.mul(self._flat.data, 1.0 - self._free, out=self._fixed)
        self._forget_rounded()

    def _forget_rounded(self) -> None:
        """Take rounded weights out of the optimizers' averages, where without gradients they would fall to subnormal
        numbers, with which a processor is ten times as slow."""
        self._muon.momentum.mul_(self._flat.span(self._free, "matrix"))
        for group, adam in zip(_ADAM_GROUPS, self._adam, strict=True):
            for average in (adam.first, adam.second):
                average.mul_(self._flat.span(self._free, group))

    def train(self, batches: Sequence[Tensor], done: float, until: float, on_step: Callable[[float], None]) -> None:
        """One step per batch of token ids (B, T), the learning rate falling as from `done` to `until` of all steps.

        on_step: called with the divergence in nats per token.
        """
        flat = self._flat
        for number, tokens in enumerate(batches):
            flat.zero_grad()
            found = divergence.mean(self._model, self._student, tokens)
            found.backward()
            flat.grad.mul_(self._free)
            self._step(self.lr * (1 - done - (until - done) * number / len(batches)))
            flat.data.mul_(self._free).add_(self._fixed)
            on_step(float(found.detach()))

    def _step(self, lr: float) -> None:
        self._muon.step(MUON_RATE * lr, _MOMENTUM, 0.0)
        for adam in self._adam:
            adam.step(lr, 0.0)

    def controls(self) -> dict[str, Tensor]:
        """All tensors that are not quantized, float32 on the CPU, by parameter name."""
        named = self._flat.named(self._flat.data)
        return {name: tensor.detach().cpu().clone() for name, tensor in named.items() if name not in self._parts}

    @property
    def weights(self) -> int:
        """Weights of the share that was rounded last."""
        return sum(part.symbols[:, part.columns].size for part in self._parts.values())

    @property
    def rate_weight(self) -> float:
        return self._plan.rounding.rate_weight

    def round(self, octaves: float, rate_weight: float | None = None) -> Matrices:
        """All matrices; the columns rounded last have steps coarser by `octaves`."""
        rounding = self._plan.rounding if rate_weight is None else replace(self._plan.rounding, rate_weight=rate_weight)

        def again(part: _Part) -> QuantizedTensor:
            return _round(part, waterfill.move_columns(part.steps, octaves, part.columns), self._plan, rounding)[0]

        return dict(zip(self._parts, in_parallel(again, self._parts.values(), self._plan.threads), strict=True))


def _round(part: _Part, steps: Steps, plan: Plan, rounding: Rounding) -> tuple[QuantizedTensor, Floats]:
    """The matrix with its last share rounded, and its free columns with the error fed to them."""
    symbols = part.symbols.copy()
    symbols[:, part.columns], free = waterfill.round_columns(
        part.problem, part.weight, steps, part.columns, rounding, plan.probabilities
    )
    return waterfill.tensor_of(part.problem, steps, symbols, rounding), free
