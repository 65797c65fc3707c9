"""Settings of the model. Off means that a part's parameters do not exist and its code does not run."""

from dataclasses import dataclass

from pgolf.errors import PgolfError


@dataclass(frozen=True)
class ModelConfig:
    vocab_size: int = 1024
    """Rows of the embedding; `train` refuses a tokenizer with more pieces."""
    dim: int = 128
    """Width of the residual stream."""
    num_layers: int = 3
    """Physical blocks, each with weights of its own."""
    num_heads: int = 4
    """Query heads; must divide `dim`."""
    num_kv_heads: int = 2
    """Key and value heads; must divide `num_heads`."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP over `dim`."""
    mlp_slope: float = 0.0
    """Slope of the squared activation below zero: 0 is relu squared, 0.5 the records' leaky relu squared."""
    bos_id: int = 1
    """The token that begins a document; the parts that respect document boundaries look for it."""
    embed_init_std: float = 0.005
    """Standard deviation of the initial embedding (the records' value)."""
    qk_gain: float = 5.25
    """Start of the learned gain per head on the normed query."""
    rope_base: float = 10_000.0
    """Base of the rotary frequencies."""
    rope_dims: int = 0
    """Dimensions of each head that rotate, from the first; 0: all of them (the records: 16 of 64)."""
    logit_softcap: float = 30.0
    """Logits are squashed to `c * tanh(z / c)`; 0: off."""
    x0_mix: bool = True
    """Every block begins from a learned mix of the stream and the normed embedding."""
    parallel_from: int = -1
    """First layer whose attention and MLP read the same input and are added together; -1: none, 0: all."""
    loop_first: int = 0
    """First layer of the looped range."""
    loop_last: int = -1
    """Last layer of the looped range; -1: the last of all."""
    loop_passes: int = 1
    """Times the range is run in training; 1: no looping."""
    eval_loop_passes: int = 0
    """Times the range is run in evaluation; 0: as in training."""
    loop_from: float = 0.0
    """Fraction of training from which the looping is on."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "dim", "num_layers", "num_heads", "num_kv_heads", "loop_passes"):
            if getattr(self, name) < 1:
                raise PgolfError(f"model.{name} is {getattr(self, name)}; it must be at least 1")
        if self.vocab_size > 65_536:
            raise PgolfError(f"model.vocab_size is {self.vocab_size}; shards hold tokens below 65,536")
        if self.dim % self.num_heads:
            raise PgolfError(f"model.num_heads = {self.num_heads} does not divide model.dim = {self.dim}")
        if self.num_heads % self.num_kv_heads:
            raise PgolfError(
                f"model.num_kv_heads = {self.num_kv_heads} does not divide model.num_heads = {self.num_heads}"
            )
        head_dim = self.dim // self.num_heads
        if (self.rope_dims or head_dim) % 2 or self.rope_dims > head_dim or self.rope_dims < 0:
            raise PgolfError(
                f"model.rope_dims = {self.rope_dims} cannot rotate heads of {head_dim}: an even number up to that"
            )
        last = self.loop_last % self.num_layers if self.loop_last < 0 else self.loop_last
        if not 0 <= self.loop_first <= last < self.num_layers:
            raise PgolfError(
                f"model.loop_first = {self.loop_first} and model.loop_last = {self.loop_last} are no range of "
                f"model.num_layers = {self.num_layers} layers"
            )
