"""AdamW on one contiguous span of the flat buffers: a single fused operation for all its tensors (arXiv 1711.05101)."""

import torch
from torch import Tensor

from pgolf.optim.flat import FlatParameters


class FlatAdam:
    """Updates one group of flat parameters. State: both moments and the number of steps."""

    def __init__(self, flat: FlatParameters, group: str, betas: tuple[float, ...], epsilon: float) -> None:
        self._group, self._epsilon = group, epsilon
        self._beta1, self._beta2 = betas
        self._data, self._grad = flat.span(flat.data, group), flat.span(flat.grad, group)
        self.first, self.second = torch.zeros_like(self._data), torch.zeros_like(self._data)
        self.steps = torch.zeros((), device=self._data.device)

    def state(self) -> dict[str, Tensor]:
        """State for checkpoints, by name: the tensors themselves, to copy from or into."""
        prefix = f"adam.{self._group}"
        return {f"{prefix}.first": self.first, f"{prefix}.second": self.second, f"{prefix}.steps": self.steps}

    @torch.no_grad()
    def step(self, lr: float, decay: float) -> None:
        """One update from the gradients in the flat buffer. `decay` is multiplied by `lr`."""
        if not len(self._data):
            return
        self.steps += 1
        betas = self._beta1, self._beta2
        adamw(self._data, self._grad, self.first, self.second, self.steps, lr, decay, betas, self._epsilon)


def adamw(
    data: Tensor,
    grad: Tensor,
    first: Tensor,
    second: Tensor,
    steps: Tensor,
    lr: float,
    decay: float,
    betas: tuple[float, ...],
    epsilon: float,
) -> None:
    """Update data in place from its gradient; first and second are the moments, steps counts this step too."""
    torch._fused_adamw_(
        [data],
        [grad],
        [first],
        [second],
        [],
        [steps],
        lr=lr,
        beta1=betas[0],
        beta2=betas[1],
        weight_decay=decay,
        eps=epsilon,
        amsgrad=False,
        maximize=False,
    )
