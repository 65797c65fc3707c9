"""The optimizer of test-time training: chosen weights, and a pull back to where they began.

Adam without momentum, as in dynamic evaluation (arXiv 1709.07432: RMS-normalized gradients with a decay to the trained
weights): momentum would carry gradients over from a previous document.
"""

import math

import torch
from torch import Tensor

from pgolf.config.ttt import TttConfig
from pgolf.model.gpt import GPT

SGD_MOMENTUM = 0.9  # the records'
SGD_CLIP = 1.0  # the records'


class Learner:
    """Steps on a model's chosen weights, in place; the others are frozen."""

    def __init__(self, model: GPT, settings: TttConfig) -> None:
        self._settings = settings
        self.parameters = [parameter for name, parameter in model.named_parameters() if _chosen(model, name, settings)]
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        self._start = [parameter.detach().clone() for parameter in self.parameters] if settings.decay else []
        self._optimizer: torch.optim.Optimizer = (
            torch.optim.SGD(self.parameters, lr=settings.lr, momentum=SGD_MOMENTUM)
            if settings.optimizer == "sgd"
            else torch.optim.Adam(self.parameters, lr=settings.lr, betas=(0.0, settings.beta2), foreach=True)
        )
        self.steps = 0

    def step(self, loss: Tensor, done: float) -> None:
        """One step down the gradient of a loss; done: share of the stream that is scored, for the schedule."""
        self.backward(loss)
        self.follow(done)

    def backward(self, loss: Tensor) -> None:
        self._optimizer.zero_grad()
        loss.backward()

    def follow(self, done: float) -> None:
        """Step along the gradients that the weights hold."""
        factor = 1.0 if self._settings.schedule == "constant" else 0.5 * (1 + math.cos(math.pi * done))
        for group in self._optimizer.param_groups:
            group["lr"] = self._settings.lr * factor
        if self._settings.optimizer == "sgd":
            torch.nn.utils.clip_grad_norm_(self.parameters, SGD_CLIP)
        self._optimizer.step()
        if self._start:
            with torch.no_grad():
                torch._foreach_lerp_([*self.parameters], self._start, self._settings.decay)
        self.steps += 1


def _chosen(model: GPT, name: str, settings: TttConfig) -> bool:
    return "all" in settings.weights or model.matrix_roles().get(name, "control") in settings.weights
