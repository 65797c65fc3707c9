"""Distributions at the positions that an audit or the tilt asks for; a program that only scores does without."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgolf.evaluate.evaluator import WHOLE, Positions


def parts(positions: Positions) -> Mapping[int, Any]:
    """By position, the part of the distribution that is wanted."""
    return positions if isinstance(positions, Mapping) else dict.fromkeys(positions, WHOLE)


def chosen(
    logits: Callable[[list[int]], Tensor], positions: np.ndarray, wanted: Mapping[int, Any]
) -> dict[int, np.ndarray]:
    """The wanted parts of distributions; logits: of some rows (rows, vocab_size); positions: (n,) of all rows."""
    rows = [row for row, position in enumerate(positions.tolist()) if position in wanted]
    if not rows:
        return {}
    vectors = torch.log_softmax(logits(rows).detach().double(), dim=-1).cpu().numpy()
    return {int(positions[row]): vector[wanted[positions[row]]] for row, vector in zip(rows, vectors, strict=True)}
