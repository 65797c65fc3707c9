"""The watch for a loss or gradient that is not finite, without waiting for the GPU in every step.

On a CPU a step's loss is known at once. On a GPU it is copied aside and looked at two steps later, which also keeps the
host from running further ahead; the weights of the last steps are kept on the device meanwhile, so that the step in
which it began can be repeated (`nonfinite_origin`).
"""

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

_DELAY = 2  # steps between launching one and looking at its loss, on a GPU


@dataclass(frozen=True)
class StepResult:
    iteration: int
    loss: float
    grad_norm: float


class NotFinite(Exception):
    """A step whose loss or gradient is not finite. `weights`: the flat weights it was computed with."""

    def __init__(self, iteration: int, weights: Tensor) -> None:
        super().__init__(f"the loss is not finite at step {iteration}")
        self.iteration, self.weights = iteration, weights


class Watch:
    """Takes the loss and gradient norm of every step, gives them back as numbers once they are known."""

    def __init__(self, weights: Tensor) -> None:
        self._weights = weights
        self._pending: deque[tuple[int, Tensor, torch.cuda.Event, Tensor]] = deque()

    @property
    def in_flight(self) -> int:
        """Steps launched on a GPU whose results are not known yet."""
        return len(self._pending)

    def push(self, iteration: int, loss: Tensor, grad_norm: Tensor) -> list[StepResult]:
        """To be called before the weights are updated. Raises NotFinite."""
        if not self._weights.is_cuda:
            return [self._checked(iteration, float(loss), float(grad_norm), self._weights)]
        host = torch.empty(2, pin_memory=True)
        host.copy_(torch.stack((loss, grad_norm)), non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._pending.append((iteration, host, event, self._weights.clone()))
        return self._collect(_DELAY)

    def drain(self) -> list[StepResult]:
        """Wait for everything pushed so far. Raises NotFinite."""
        return self._collect(0)

    def _collect(self, keep: int) -> list[StepResult]:
        found = []
        while len(self._pending) > keep:
            iteration, host, event, weights = self._pending.popleft()
            event.synchronize()
            loss, grad_norm = host.tolist()
            found.append(self._checked(iteration, loss, grad_norm, weights))
        return found

    @staticmethod
    def _checked(iteration: int, loss: float, grad_norm: float, weights: Tensor) -> StepResult:
        if not (abs(loss) < float("inf") and abs(grad_norm) < float("inf")):  # false for nan too
            raise NotFinite(iteration, weights)
        return StepResult(iteration, loss, grad_norm)
