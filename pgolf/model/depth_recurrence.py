"""Depth recurrence: a range of layers run several times with all its weights shared.

Record 2026-04-09 and later run layers 3 to 5 of 11 three times, from 35% of training on; the seed runs all of its
three blocks eight times. Looping everything loses at the challenge's scale (PR #363: +0.014 to +0.025 BPB).
"""

from pgolf.config.model import ModelConfig


def layer_order(config: ModelConfig, passes: int) -> list[int]:
    """Physical layer of every executed block, in order, with the looped range run `passes` times."""
    first = config.loop_first
    stop = (config.loop_last if config.loop_last >= 0 else config.num_layers + config.loop_last) + 1
    return [*range(first), *list(range(first, stop)) * passes, *range(stop, config.num_layers)]
