"""Settings of the evaluators."""

from dataclasses import dataclass

from pgolf.errors import PgolfError


@dataclass(frozen=True)
class EvaluateConfig:
    seq_len: int = 0
    """Tokens of context at most; 0: the training length."""
    stride: int = 64
    """Tokens newly scored per window, so each sees at least `seq_len - stride` tokens where there are that many."""
    batch_windows: int = 32
    """Windows evaluated together."""

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise PgolfError(f"evaluate.stride is {self.stride}; it must be at least 1")
