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

    def __post_init__(self) -> None:
        if self.dim % self.num_heads:
            raise PgolfError(f"model.num_heads = {self.num_heads} does not divide model.dim = {self.dim}")
        if self.num_heads % self.num_kv_heads:
            raise PgolfError(
                f"model.num_kv_heads = {self.num_kv_heads} does not divide model.num_heads = {self.num_heads}"
            )
