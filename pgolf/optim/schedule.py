"""Schedules over the fraction of training that is done.

The fraction is that of the wall clock or of the iterations, whichever is further along, so that a slower machine
anneals as fully as a faster one.
"""

from pgolf.config.optim import OptimConfig


def fraction_done(iteration: int, iterations: int, elapsed: float, seconds: float) -> float:
    """How much of training is done, 0 to 1; `seconds` 0 means that only iterations count."""
    by_clock = elapsed / seconds if seconds else 0.0
    return min(1.0, max(iteration / iterations, by_clock))


def lr_factor(config: OptimConfig, group: str, fraction: float, iteration: int) -> float:
    """What the learning rate of `group` is multiplied by in the step after `iteration` steps.

    1 on the plateau, then linear to the group's floor at fraction 1. With `warmdown_iterations` the length of the
    warmdown is that many iterations out of as many as the present pace will reach, as the seed has it.
    """
    own_warmdown = {"embed": config.embed_warmdown, "scalar": config.scalar_warmdown}.get(group)
    own_floor = {"embed": config.embed_floor, "scalar": config.scalar_floor}.get(group)
    warmdown = config.warmdown if own_warmdown is None else own_warmdown
    floor = config.lr_floor if own_floor is None else own_floor
    if config.warmdown_iterations and own_warmdown is None:
        expected = iteration / fraction if fraction > 0 else float("inf")
        warmdown = min(1.0, config.warmdown_iterations / max(expected, 1.0))
    factor = 1.0
    if config.warmup and iteration < config.warmup:
        factor = (iteration + 1) / config.warmup
    if warmdown and fraction > 1 - warmdown:
        factor *= floor + (1 - floor) * (1 - fraction) / warmdown
    return factor


def momentum_at(config: OptimConfig, iteration: int) -> float:
    """Muon's momentum in the step after `iteration` steps."""
    if iteration >= config.momentum_warmup:
        return config.momentum
    return config.momentum_start + (config.momentum - config.momentum_start) * iteration / config.momentum_warmup


def decay_factor(config: OptimConfig, fraction: float) -> float:
    """What the weight decay is multiplied by."""
    if fraction <= config.decay_from:
        return 1.0
    return 1 + (config.decay_end - 1) * (fraction - config.decay_from) / (1 - config.decay_from)
