"""Settings of the optimizers and their schedules."""

from dataclasses import dataclass


@dataclass(frozen=True)
class OptimConfig:
    matrix_lr: float = 0.04
    """Muon's learning rate (the seed's)."""
