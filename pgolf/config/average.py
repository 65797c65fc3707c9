"""Settings of the weight averages kept during training."""

from dataclasses import dataclass

from pgolf.errors import PgolfError


@dataclass(frozen=True)
class AverageConfig:
    ema_decays: tuple[float, ...] = (0.99, 0.995, 0.998)
    """One exponential moving average of the weights per decay, updated every step."""
    ema_from: float = 0.3
    """Fraction of training from which the moving averages run, so that no initial weights are in them."""
    tail_from: float = 0.9
    """Fraction of training from which the plain mean of all weights (`tail`) is taken; 1: none."""
    interpolate: tuple[float, ...] = (0.5,)
    """Interpolation weights between the last weights (0) and the best average (1) that `ema-finalize` also tries."""

    def __post_init__(self) -> None:
        if any(not 0 < decay < 1 for decay in self.ema_decays) or len(set(self.ema_decays)) < len(self.ema_decays):
            raise PgolfError(
                f"average.ema_decays must be distinct numbers between 0 and 1, got {list(self.ema_decays)}"
            )
        for name in ("ema_from", "tail_from"):
            if not 0 <= getattr(self, name) <= 1:
                raise PgolfError(f"average.{name} is {getattr(self, name)}; it must be from 0 to 1")
        if any(not 0 < share < 1 for share in self.interpolate):
            raise PgolfError(f"average.interpolate must be numbers between 0 and 1, got {list(self.interpolate)}")
