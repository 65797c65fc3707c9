"""In-place test-time training: the last block's MLP down-projection as fast weights (arXiv 2604.06169).

The paper updates the down-projections of chosen blocks chunk by chunk with an objective aligned with next-token
prediction; here it is that prediction's own loss. Confined to the last executed block, whatever the weights below have
computed stays right when the fast weights move: the trunk runs once over each window, in batches, and only
`rmsnorm(x + s * D z)`, with z the MLP's hidden layer and D the fast weights, and the head are recomputed. The
seed's way is a full forward of the model for every 64 tokens, one at a time
(benchmarks/evaluate/evaluation.py compares the two).

D is zero when a document begins and follows the gradient summed over each chunk once the chunk is scored, divided by
its root mean square over the stream so far: without that, a rate that suits one model makes another one's fast weights
explode.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pgolf.errors import PgolfError
from pgolf.evaluate.evaluator import Trace
from pgolf.evaluate.sliding import expected_tokens, plan_windows, previous_tokens, rows_of, scoring, targets_of
from pgolf.evaluate.ttt.task import Method, Passes, Task
from pgolf.evaluate.windows import Window
from pgolf.model.block import Block
from pgolf.model.layers import rms_norm

BETA2 = 0.99  # memory of the squared gradients, in chunks
EPSILON = 1e-8


def run(task: Task) -> Trace:
    """Score the stream; `evaluate.context` (windowed or banded) sets the context of the trunk.

    Raises PgolfError for a model whose last MLP does not feed the output alone.
    """
    model, settings = task.model, task.settings
    if model.lanes is not None or model.backout is not None or model.copy_heads is not None:
        raise PgolfError(
            "ttt.method in-place needs the last block's output to be the model's: no lanes, backout or copy heads"
        )
    model.requires_grad_(False)
    plan, size = plan_windows(model, task.tokens, settings)
    fast = _FastWeights(task)
    left = float(sum(window.length for window in plan))
    with scoring(model, settings):
        for at in range(0, len(plan), size):
            batch = plan[at : at + size]
            learns = task.clock.may_learn(left)
            left -= sum(window.length for window in batch)
            fast.run(targets_of(batch), *_trunk(task, batch), learns)
            task.clock.took(sum(window.length for window in batch))
    return task.recorder.trace(steps=fast.steps, out_of_time=task.clock.stopped)


def passes(task: Task) -> Passes:
    """One forward of the trunk; the cost of the fast weights is small."""
    plan, _ = plan_windows(task.model, task.tokens, task.settings)
    total = float(sum(window.length for window in plan))
    return Passes(total, total)


METHOD = Method(run, passes, rates=("in_place_lr",), takes_context=True)


class _FastWeights:
    """D (dim, hidden), and the bookkeeping of chunks: they end after `chunk_tokens` targets or with a document."""

    def __init__(self, task: Task) -> None:
        self._task = task
        block = task.model.blocks[task.model.layer_order()[-1]]
        assert isinstance(block, Block)
        self._scale = block.mlp_scale.detach()
        self._weights = torch.zeros_like(block.mlp.proj.weight)
        self._gradient = torch.zeros_like(self._weights)
        self._squares = torch.zeros_like(self._weights)
        self._held = 0  # targets scored since the last update
        self.steps = 0

    def run(self, targets: np.ndarray, stream: Tensor, inner: Tensor, learns: bool) -> None:
        """Score consecutive targets; stream (n, dim) before the final norm, inner (n, hidden) of the last MLP."""
        tokens, chunk = self._task.tokens, self._task.ttt.chunk_tokens
        starts = tokens[targets] == self._task.bos_id  # the input is a BOS: this target is the document's first
        begin = 0
        while begin < len(targets):
            if starts[begin]:
                self._weights.zero_()
                self._gradient.zero_()
                self._held = 0
            later = np.flatnonzero(starts[begin + 1 :])
            end = min(
                begin + chunk - self._held, len(targets), begin + 1 + int(later[0]) if later.size else len(targets)
            )
            self._score(targets[begin:end], stream[begin:end], inner[begin:end], learns)
            begin = end

    def _score(self, targets: np.ndarray, stream: Tensor, inner: Tensor, learns: bool) -> None:
        task = self._task
        with torch.set_grad_enabled(learns):
            moved = stream + self._scale * F.linear(inner, self._weights.to(inner.dtype))
            moved.requires_grad_(learns)
            logits = task.model.logits(rms_norm(moved), previous_tokens(task.model, task.tokens, targets, task.device))
            losses = F.cross_entropy(logits, expected_tokens(task.tokens, targets, task.device), reduction="none")
        task.recorder.add(targets, losses.detach().double().cpu().numpy(), self.steps)
        task.recorder.keep(targets, logits)
        if not learns:
            return
        slope = torch.autograd.grad(losses.sum(), moved)[0]  # (n, dim)
        self._gradient += (self._scale * slope).float().T @ inner.float()
        self._held += len(targets)
        if self._held >= task.ttt.chunk_tokens:
            self._squares.lerp_(self._gradient.square(), 1 - BETA2)
            scale = (self._squares / (1 - BETA2 ** (self.steps + 1))).sqrt_().add_(EPSILON)
            self._weights -= task.ttt.in_place_lr * self._gradient / scale
            task.recorder.learned(self.steps, targets[-1] + 1 - self._held, targets[-1])
            self._gradient.zero_()
            self._held = 0
            self.steps += 1


@torch.no_grad()
def _trunk(task: Task, batch: Sequence[Window]) -> tuple[Tensor, Tensor]:
    """Of every scored target: the stream before the final norm (n, dim), the last MLP's hidden layer (n, hidden)."""
    model = task.model
    inputs, picked, last = rows_of(task.tokens, batch, task.device)
    block = model.blocks[model.layer_order()[-1]]
    assert isinstance(block, Block)
    inner: list[Tensor] = []
    outer: list[Tensor] = []
    hooks = (
        block.mlp.proj.register_forward_pre_hook(lambda _, given: inner.append(given[0])),
        block.register_forward_hook(lambda _, __, made: outer.append(made)),
    )
    try:
        model.hidden(inputs, last)
    finally:
        for hook in hooks:
            hook.remove()
    return outer[-1].flatten(0, 1)[picked], inner[-1].flatten(0, 1)[picked]  # of the last pass, when it is looped
