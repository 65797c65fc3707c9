"""Settings of the training run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainConfig:
    iterations: int = 20_000
    """Optimizer steps at most."""
    seconds: float = 0.0
    """Wall clock of the training steps, summed over restarts; 0: no cap."""
    batch_tokens: int = 4096
    """Tokens of one optimizer step, over all ranks."""
    seq_len: int = 256
    """Tokens of one training sequence."""
    checkpoint_every: int = 500
    """Iterations between checkpoints that a killed run resumes from."""
