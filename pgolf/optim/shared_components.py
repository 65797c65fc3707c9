"""Components that rows of an embedding have in common: E = R + Z W, with Z fixed and W learned beside the rows' own R.

Z (rows, dims) says which rows are alike: by spelling (`tokens.spelling`), by neighbours (`tokens.cooccurrence`). A
step of W moves all rows at once, like ones alike, so what many rare pieces have in common is learned from all of their
occurrences; Adam gives W moments of its own. The model sees E alone, an ordinary embedding, and so does everything
after training. Weight decay draws R to zero, that is E to Z W, and leaves W: the shared part is what a row is when
nothing else is known of it.
"""

import torch
from torch import Tensor

from pgolf.optim.adam import adamw
from pgolf.optim.flat import FlatParameters


class SharedComponents:
    """Moves one embedding of the flat parameters along what its rows share. State: Z, W and W's moments."""

    def __init__(
        self, flat: FlatParameters, name: str, likeness: Tensor, share: float, decays: float,
        betas: tuple[float, ...], epsilon: float,
    ) -> None:  # fmt: skip
        """name: of the embedding; likeness: Z; share: W's learning rate over the embedding's; decays: its
        weight decay over the embedding's."""
        self._rows, self._gradient = flat.view(flat.data, name), flat.view(flat.grad, name)
        self._share, self._decays, self._betas, self._epsilon = share, decays, betas, epsilon
        self._likeness = likeness.to(self._rows)
        self._weights = self._rows.new_zeros(likeness.shape[1], self._rows.shape[1])
        self._first, self._second = torch.zeros_like(self._weights), torch.zeros_like(self._weights)
        self._steps = torch.zeros((), device=self._rows.device)

    def state(self) -> dict[str, Tensor]:
        """State for checkpoints, by name: the tensors themselves, to copy from or into."""
        return {
            "shared.likeness": self._likeness,
            "shared.weights": self._weights,
            "shared.first": self._first,
            "shared.second": self._second,
            "shared.steps": self._steps,
        }

    @torch.no_grad()
    def step(self, lr: float, decay: float) -> None:
        """One update, beside the embedding's own at the same learning rate and decay (which is multiplied by `lr`)."""
        before, gradient = self._weights.clone(), self._likeness.T @ self._gradient
        self._steps += 1
        moments = self._first, self._second, self._steps
        rate, own = lr * self._share, decay * self._decays / self._share
        adamw(self._weights, gradient, *moments, rate, own, self._betas, self._epsilon)
        # The rows' own update has decayed all of E: give Z W back what it lost.
        self._rows.addmm_(self._likeness, self._weights - (1 - lr * decay) * before)
