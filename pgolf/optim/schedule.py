"""Schedules over the fraction of training that is done.

The fraction is that of the wall clock or of the iterations, whichever is further along, so that a slower machine
anneals as fully as a faster one.
"""

from pgolf.config.optim import OptimConfig


def fraction_done(iteration: int, iterations: int, elapsed: float, seconds: float) -> float:
    """Fraction of training done, 0 to 1, by iterations or time, whichever is further; `seconds` 0: by iterations
    only."""
    by_clock = elapsed / seconds if seconds else 0.0
    return min(1.0, max(iteration / iterations, by_clock))


def lr_factor(config: OptimConfig, group: str, fraction: float, iteration: int, planned: int = 0) -> float:
    """Multiplier of the learning rate of `group` in the step after `iteration` steps.

    1 on the plateau, then `max(linear, floor)`, the line reaching 0 at fraction 1 (the records clamp at the floor, they
    do not interpolate down to it). With `warmdown_iterations` the warmdown has that many iterations of as many as the
    present pace will reach; longer than the run, it begins at iterations / warmdown (openai/parameter-golf `lr_mul`).

    planned: iterations of a run without a clock, 0 under a clock; of use in the first step only, which has no pace yet.
    """
    own_warmdown = {"embed": config.embed_warmdown, "scalar": config.scalar_warmdown}.get(group)
    own_floor = {"embed": config.embed_floor, "scalar": config.scalar_floor}.get(group)
    warmdown = config.warmdown if own_warmdown is None else own_warmdown
    floor = config.lr_floor if own_floor is None else own_floor
    if config.warmdown_iterations and own_warmdown is None:
        expected = iteration / fraction if iteration and fraction else planned
        warmdown = config.warmdown_iterations / expected if expected else 0.0
    factor = 1.0
    if config.warmup and iteration < config.warmup:
        factor = (iteration + 1) / config.warmup
    if warmdown and fraction > 1 - warmdown:
        factor *= max((1 - fraction) / warmdown, floor)
    return factor


def momentum_at(config: OptimConfig, iteration: int) -> float:
    """Muon's momentum in the step after `iteration` steps."""
    if iteration >= config.momentum_warmup:
        return config.momentum
    return config.momentum_start + (config.momentum - config.momentum_start) * iteration / config.momentum_warmup


def decay_factor(config: OptimConfig, fraction: float) -> float:
    """Factor of the weight decay."""
    if fraction <= config.decay_from:
        return 1.0
    return 1 + (config.decay_end - 1) * (fraction - config.decay_from) / (1 - config.decay_from)
