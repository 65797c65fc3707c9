"""Choosing the weights to go on with: the last ones, an average kept during training, or a blend of the two.

By the loss on a held-out slice of train tokens, which training never saw.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Weights = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Choice:
    weights: Weights
    name: str
    losses: Mapping[str, float]
    """Nats per token on the held-out slice, of every candidate in the order tried."""


def choose(
    last: Weights,
    averages: Mapping[str, Callable[[], Weights]],
    shares: Sequence[float],
    loss_of: Callable[[Weights], float],
    on_progress: Callable[[int, str], None] = lambda count, note: None,
) -> Choice:
    """Try the last weights, each average, and blends of the best average with the last.

    averages: by name, how to get them; one is held at a time. shares: of the average in a blend.
    """
    losses = {"last": loss_of(last)}
    best_weights, best = last, "last"
    average: tuple[str, Weights] | None = None

    def attempt(name: str, weights: Weights) -> None:
        nonlocal best_weights, best
        losses[name] = loss_of(weights)
        if losses[name] < losses[best]:
            best_weights, best = weights, name
        on_progress(len(losses), f"{best} {losses[best]:.4f}")

    for name, get in averages.items():
        weights = get()
        attempt(name, weights)
        if average is None or losses[name] <= losses[average[0]]:
            average = name, weights
    for share in shares if average is not None else ():
        assert average is not None
        name, weights = average
        blend = {key: torch.lerp(value, weights[key], share) for key, value in last.items()}
        attempt(f"{share:g} {name} + {1 - share:g} last", blend)
    return Choice(best_weights, best, losses)
