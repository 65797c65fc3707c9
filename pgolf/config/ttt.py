"""Settings of test-time training. Every method scores a chunk before it learns from it."""

from dataclasses import dataclass

from pgolf.errors import PgolfError

METHODS = ("sgd", "in-place")
OPTIMIZERS = ("sgd", "adam", "muon")


@dataclass(frozen=True)
class TttConfig:
    method: str = "sgd"
    """`sgd`: all or chosen weights, chunk by chunk over the stream; `in-place`: MLP down-projections learn."""
    seconds: float = 0.0
    """Wall clock of the whole evaluation; adaptation stops when what is left is needed for scoring. 0: no cap."""
    chunk_tokens: int = 4096
    """Targets scored between two updates (the records: 32,768 on a stream a hundred times as long)."""
    epochs: int = 3
    """Passes over a chunk once it is scored (the records' value)."""
    optimizer: str = "sgd"
    """`sgd` with momentum, `adam`, or `muon` (orthogonalized updates for matrices, adam for the rest)."""
    lr: float = 0.005
    """Peak learning rate (the records' value for sgd)."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise PgolfError(f"ttt.method is {self.method!r}; choose {' or '.join(METHODS)}")
        if self.optimizer not in OPTIMIZERS:
            raise PgolfError(f"ttt.optimizer is {self.optimizer!r}; choose {' or '.join(OPTIMIZERS)}")
        if self.chunk_tokens < 1:
            raise PgolfError(f"ttt.chunk_tokens is {self.chunk_tokens}; it must be at least 1")
        if self.epochs < 0:
            raise PgolfError(f"ttt.epochs is {self.epochs}; it must be at least 0")
