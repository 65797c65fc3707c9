"""Components that rows of an embedding have in common: E = R + Z W, with Z fixed and W learned beside the rows' own R.

Z (rows, n) says which rows are alike: by spelling (`tokens.spelling`), by neighbours (`tokens.cooccurrence`). A step of
W moves all rows at once, like ones alike, so what many rare pieces have in common is learned from all of their
occurrences; Adam gives W moments of its own. R and W decay alike, so that only E is kept: the model sees an ordinary
embedding, and so does everything after training. Without decay of W the model was no better and E twice as long; its
columns had a third of a bit a weight in common in place of a fifth, and more was lost in rounding
(benchmarks/results/mini_ladder.md).
"""

import torch
from torch import Tensor

from pgolf.optim.adam import adamw
from pgolf.optim.flat import FlatParameters


class SharedComponents:
    """Moves one embedding of the flat parameters along what its rows share. State: Z and W's moments."""

    def __init__(
        self, flat: FlatParameters, name: str, likeness: Tensor, share: float, betas: tuple[float, ...], epsilon: float
    ) -> None:
        """name: of the embedding; likeness: Z; share: W's learning rate over the embedding's."""
        self._rows, self._gradient = flat.view(flat.data, name), flat.view(flat.grad, name)
        self._share, self._betas, self._epsilon = share, betas, epsilon
        self._likeness = likeness.to(self._rows)
        self._first = self._rows.new_zeros(likeness.shape[1], self._rows.shape[1])
        self._second, self._steps = torch.zeros_like(self._first), torch.zeros((), device=self._rows.device)

    def state(self) -> dict[str, Tensor]:
        """State for checkpoints, by name: the tensors themselves, to copy from or into."""
        return {
            "shared.likeness": self._likeness,
            "shared.first": self._first,
            "shared.second": self._second,
            "shared.steps": self._steps,
        }

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One update, beside the rows' own at the learning rate `lr`, which has decayed all of E."""
        self._steps += 1
        moved, gradient = torch.zeros_like(self._first), self._likeness.T @ self._gradient
        moments = self._first, self._second, self._steps
        adamw(moved, gradient, *moments, lr * self._share, 0.0, self._betas, self._epsilon)
        self._rows.addmm_(self._likeness, moved)
