"""Settings of the training run."""

import itertools
from dataclasses import dataclass, field

from pgolf.config.effects import NO_EFFECT
from pgolf.errors import PgolfError

MATMULS = ("float32", "bfloat16", "auto")


@dataclass(frozen=True)
class TrainConfig:
    iterations: int = 20_000
    """Optimizer steps at most."""
    seconds: float = 0.0
    """Cap on the wall-clock time of the training steps, summed over restarts and never exceeded; the pauses in which
    checkpoints are copied do not count; 0: no cap."""
    reserve_seconds: float = 0.0
    """Seconds at the end of `seconds`, inside the cap, for everything that reads train tokens after the last step (the
    choice of the average); 0: the later stages do it, outside the clock."""
    batch_tokens: int = 4096
    """Tokens of one optimizer step, over all processes."""
    seq_len: int = 256
    """Tokens of one training sequence."""
    micro_tokens: int = field(default=0, metadata=NO_EFFECT)
    """Tokens of one forward and backward pass per process; gradients add up over a step; 0: all at once."""
    batch_schedule: tuple[tuple[float, ...], ...] = ()
    """Batch size schedule: pairs [fraction of training, batch_tokens] in ascending order."""
    seq_schedule: tuple[tuple[float, ...], ...] = ()
    """Sequence length schedule: pairs [fraction of training, seq_len] in ascending order."""
    holdout_tokens: int = 100_000
    """Size of the held-out slice at the end of the train stream, at most 5% of it; averages and settings are chosen on
    it."""
    checkpoint_every: int = field(default=500, metadata=NO_EFFECT)
    """Iterations between checkpoints that a killed run resumes from."""
    checkpoint_seconds: float = field(default=60.0, metadata=NO_EFFECT)
    """Seconds after which a checkpoint is written even if fewer iterations have passed; 0: by iterations only."""
    log_every: int = field(default=10, metadata=NO_EFFECT)
    """Iterations that one line of `metrics.jsonl` and one point of the loss curve average over."""
    allow_unused_rows: bool = field(default=False, metadata=NO_EFFECT)
    """Train a model with more vocabulary rows than the tokenizer has pieces, though no token ever looks them up."""
    compile: bool = field(default=True, metadata=NO_EFFECT)
    """Use torch.compile where it is expected to save more of the budget than it costs; false: never."""
    matmul: str = "float32"
    """Arithmetic of training's matrix products on a CPU: `float32`, `bfloat16`, or `auto`, the faster one."""
    tensorboard: bool = field(default=False, metadata=NO_EFFECT)
    """Also write TensorBoard event files (needs the `tensorboard` extra)."""

    def __post_init__(self) -> None:
        for name in ("iterations", "batch_tokens", "seq_len", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise PgolfError(f"train.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("seconds", "micro_tokens", "holdout_tokens", "checkpoint_seconds", "reserve_seconds"):
            if getattr(self, name) < 0:
                raise PgolfError(f"train.{name} is {getattr(self, name)}; it cannot be negative")
        if self.seconds and self.reserve_seconds >= self.seconds:
            raise PgolfError(f"train.reserve_seconds is {self.reserve_seconds:g}; it must be less than train.seconds")
        if self.matmul not in MATMULS:
            raise PgolfError(f"train.matmul is {self.matmul!r}; choose one of {', '.join(MATMULS)}")
        for name in ("batch_schedule", "seq_schedule"):
            pairs = getattr(self, name)
            if any(len(pair) != 2 or not 0 <= pair[0] < 1 or pair[1] < 1 or pair[1] % 1 for pair in pairs):
                raise PgolfError(f"train.{name} must be pairs [fraction from 0 to 1, tokens], got {list(pairs)}")
            if any(later[0] <= earlier[0] for earlier, later in itertools.pairwise(pairs)):
                raise PgolfError(f"train.{name} must ascend in its fractions, got {list(pairs)}")

    def sizes_at(self, fraction: float) -> tuple[int, int]:
        """(batch_tokens, seq_len) at a fraction of training."""
        return _at(self.batch_schedule, fraction, self.batch_tokens), _at(self.seq_schedule, fraction, self.seq_len)

    def breakpoints(self) -> list[float]:
        """The fractions at which batch or sequence length change, 0 included, ascending."""
        return sorted({0.0, *(pair[0] for pair in (*self.batch_schedule, *self.seq_schedule))})


def _at(pairs: tuple[tuple[float, ...], ...], fraction: float, before: int) -> int:
    reached = [int(pair[1]) for pair in pairs if fraction >= pair[0]]
    return reached[-1] if reached else before
