"""Averages of the weights along training: exponential ones with several decays, and the plain mean of the tail.

Each is one vector operation per step on the flat buffer. An exponential average begins with the first weights it sees
and is bias-corrected as it goes: its weight for a new value is `(1 - d) / (1 - d^t)`, so after t steps it is the
normalized mean, in which nothing from before its start (least of all the initial weights) has a share. The seed's own
average begins late and, in a run that ends earlier, exports the untouched initial weights: an average that has seen no
step does not exist here.
"""

import torch
from torch import Tensor

from pgolf.config.average import AverageConfig


class Averages:
    """All averages of one flat buffer."""

    def __init__(self, data: Tensor, config: AverageConfig) -> None:
        self._data, self._config = data, config
        self._names = [f"ema-{decay:g}" for decay in config.ema_decays]
        self._decays = config.ema_decays
        self.values = {name: torch.zeros_like(data) for name in self._names}
        if config.tail_from < 1:
            self.values["tail"] = torch.zeros_like(data)
        self.ema_steps = 0
        self.tail_steps = 0

    def state(self) -> dict[str, Tensor]:
        """State for checkpoints, by name; `ema_steps` and `tail_steps` are saved separately."""
        return {f"average.{name}": value for name, value in self.values.items()}

    @torch.no_grad()
    def update(self, fraction: float) -> None:
        """Take in the present weights, when `fraction` of training is done."""
        if fraction >= self._config.ema_from and self._names:
            self.ema_steps += 1
            for name, decay in zip(self._names, self._decays, strict=True):
                self.values[name].lerp_(self._data, (1 - decay) / (1 - decay**self.ema_steps))
        if "tail" in self.values and fraction >= self._config.tail_from:
            self.tail_steps += 1
            self.values["tail"].lerp_(self._data, 1 / self.tail_steps)

    def finished(self) -> dict[str, Tensor]:
        """The averages that have seen at least one step, by name, sorted."""
        steps = dict.fromkeys(self._names, self.ema_steps) | {"tail": self.tail_steps}
        return {name: value for name, value in sorted(self.values.items()) if steps[name]}
