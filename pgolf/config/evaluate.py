"""Settings of the evaluators."""

from dataclasses import dataclass, field

from pgolf.config.effects import NO_EFFECT
from pgolf.errors import PgolfError

CONTEXTS = ("windowed", "banded")


@dataclass(frozen=True)
class EvaluateConfig:
    seq_len: int = 0
    """Tokens of context at most; 0: the training length."""
    stride: int = 64
    """Tokens newly scored per window, so each sees at least `seq_len - stride` tokens where there are that many."""
    batch_windows: int = field(default=8, metadata=NO_EFFECT)
    """Windows evaluated together, on a CPU by each core: few enough for its cache. Use more on a GPU."""
    context: str = "windowed"
    """`windowed`: every token sees its own window and nothing before it; `banded`: one pass in which every layer sees
    `seq_len` tokens back, so that the last layer sees further."""
    reset_at_documents: bool = False
    """Contexts begin at the document's BOS instead of crossing into the document before (the challenge crosses)."""
    canonical: bool = False
    """Rule out pieces that the tokenizer never writes after the token before, with a unigram one after the word so far,
    and give their probability to the others; for tokenizers that keep text as it is."""
    prove_tokens: int = field(default=0, metadata=NO_EFFECT)
    """Tokens of val whose sliding score `pgolf run` proves at its end (`pgolf prove`); 0, or with the tilt: none."""
    tilt_boost: float = 0.0
    """Nats added to the logit of the token that the scored text's own n-grams hint at, before the distribution is
    normalized again (#1514; #2135: 2.625); 0: off."""
    tilt_order: int = 16
    """Tokens of the n-grams, the hinted one included (#2135)."""
    tilt_threshold: float = 0.8
    """Least share of the context's earlier places that the hinted token must have followed (#2135)."""
    mixture: bool = False
    """Also score a mixture with causal statistics of the scored tokens; reported separately from `bits_per_byte`."""

    def __post_init__(self) -> None:
        if self.prove_tokens < 0:
            raise PgolfError(f"evaluate.prove_tokens is {self.prove_tokens}; it must be at least 0")
        if self.stride < 1:
            raise PgolfError(f"evaluate.stride is {self.stride}; it must be at least 1")
        if self.seq_len < 0:
            raise PgolfError(f"evaluate.seq_len is {self.seq_len}; it must be at least 1, or 0 for the training length")
        if self.seq_len and self.stride > self.seq_len:
            raise PgolfError(
                f"evaluate.stride = {self.stride} is more than evaluate.seq_len = {self.seq_len}: some tokens would "
                "never be scored"
            )
        if self.tilt_boost < 0 or self.tilt_order < 1 or not 0 < self.tilt_threshold <= 1:
            raise PgolfError(
                f"evaluate.tilt_boost = {self.tilt_boost:g}, tilt_order = {self.tilt_order} and tilt_threshold = "
                f"{self.tilt_threshold:g} must be at least 0, at least 1, and in (0, 1]"
            )
        if self.batch_windows < 1:
            raise PgolfError(f"evaluate.batch_windows is {self.batch_windows}; it must be at least 1")
        if self.context not in CONTEXTS:
            raise PgolfError(f"evaluate.context is {self.context!r}; choose {' or '.join(CONTEXTS)}")
