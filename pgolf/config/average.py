"""Settings of the weight averages kept during training."""

from dataclasses import dataclass


@dataclass(frozen=True)
class AverageConfig:
    ema_decays: tuple[float, ...] = (0.99, 0.995, 0.998)
    """One exponential moving average of the weights per decay, updated every step."""
