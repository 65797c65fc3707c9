"""Settings of score-first test-time training."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TttConfig:
    method: str = "sgd"
    """`sgd` (all weights, chunk by chunk) or `in-place` (MLP down-projections as fast weights)."""
