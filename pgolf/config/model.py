"""Settings of the model. Off means that a part's parameters do not exist and its code does not run."""

from dataclasses import dataclass

from pgolf.errors import PgolfError

HEAD_GATES = ("none", "sparse", "dense")


@dataclass(frozen=True)
class ModelConfig:
    vocab_size: int = 1024
    """Rows of the embedding; `train` refuses a tokenizer with more pieces."""
    dim: int = 128
    """Width of the residual stream."""
    num_layers: int = 3
    """Number of physical blocks (layers with separate weights)."""
    num_heads: int = 4
    """Query heads; must divide `dim`."""
    num_kv_heads: int = 2
    """Key and value heads; must divide `num_heads`."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP over `dim`."""
    mlp_slope: float = 0.0
    """Slope of the squared activation below zero: 0 is relu squared, 0.5 the records' leaky relu squared."""
    bos_id: int = 1
    """The token that marks the beginning of a document. `train` and `import` replace it with the tokenizer's BOS."""
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
    asymmetric_softcap: bool = False
    """Separate caps above and below zero, both `logit_softcap` in training, which test-time training may move."""
    x0_mix: bool = True
    """Every block begins from a learned mix of the stream and the normed embedding."""
    parallel_from: int = -1
    """First layer whose attention and MLP read the same input and are added together; -1: none, 0: all."""
    loop_first: int = 0
    """First layer of the looped range."""
    loop_last: int = -1
    """Last layer of the looped range; -1: the last of all."""
    loop_passes: int = 1
    """Number of passes over the range in training; 1: no looping."""
    eval_loop_passes: int = 0
    """Number of passes over the range in evaluation; 0: as in training."""
    loop_from: float = 0.0
    """Fraction of training at which looping starts."""

    parallel_lanes: int = 1
    """Residual streams of the parallel layers: 1, or 2 with learned routing from each sublayer to both."""
    norm_scale: bool = False
    """Multiply the normed input of layer n (from 0) by 1 / sqrt(n + 1)."""
    layer_windows: tuple[int, ...] = ()
    """Attention window of each layer in tokens, the query included; 0 or an empty list: the whole sequence."""
    document_attention: bool = False
    """Mask attention at document boundaries."""
    xsa_from: int = -1
    """First layer with exclusive self-attention (the component along the token's own value is removed); -1: none, 0:
    all."""
    head_gate: str = "none"
    """A learned gate on each head's output: `none`, `sparse` (reads 12 dimensions) or `dense` (reads all)."""
    head_gate_factor: float = 0.5
    """`sparse`: factor of the gate's input before the sigmoid; 0.5 in record 1.0611, 1.0 in the three before it."""
    key_offset: bool = False
    """The dimensions of a key that do not rotate come from the token before; needs `rope_dims`."""
    value_x0: bool = False
    """Values are made from the block's input plus a learned share of the normed embedding."""
    value_embed_layers: tuple[int, ...] = ()
    """Layers that add a value embedding of the token to their values."""
    value_embed_dim: int = 128
    """Width of the value embedding table, projected to the width of the values (the records: 128)."""
    skips: bool = False
    """U-Net skips: add the outputs of the first half of the blocks to the inputs of the second half."""
    skip_gates: bool = True
    """Interpolate between stream and skip with learned gates; false: add the skip, as in the challenge baseline."""
    smear_gate: bool = False
    """Add a learned share of the previous token's embedding to each token's, never across a document start."""
    canon_taps: int = 0
    """Earlier tokens that a depthwise convolution adds to the inputs of attention and MLP, in the document; 0: off."""
    copy_orders: tuple[int, ...] = ()
    """Lengths of the contexts whose earlier occurrences in the document propose the token that followed; empty: off."""
    copy_depth: int = 1
    """Candidates per order of `copy_orders`, the latest first."""
    copy_logits: bool = False
    """Gates of the copy heads are added to the candidates' own logits; false: times their embeddings to the final
    state, which raises similar tokens too."""
    copy_token: bool = False
    """Gates of the copy heads also read the candidate's output embedding."""
    copy_input: bool = False
    """The latest candidate of each order is also added to the embedding of the token, times a learned vector."""
    document_counts: bool = False
    """Tokens that the document already holds get a higher logit, by a gate times the log of their count."""
    input_map: bool = False
    """A learned square matrix, starting as the identity, behind the embedding. With `head_map` the tied embedding's
    basis is free, and the quantizer takes its principal axes."""
    head_map: bool = False
    """A learned square matrix, starting as the identity, between the final norm and the output embedding."""
    bigram_rows: int = 0
    """Rows of the hashed embedding of token pairs; 0: off."""
    bigram_dim: int = 64
    """Width of the hashed embedding, projected to `dim`."""
    embed_dim: int = 0
    """Width of a factored embedding, projected to `dim` and back; 0: not factored."""
    tied_head: bool = True
    """Share one matrix between input and output embedding; false: a separate output matrix, initialized as a copy."""
    logit_bias: bool = False
    """A learned bias per token of the vocabulary on the logits."""
    backout: bool = False
    """Subtract a learned share of the middle block's output from the last block's output."""
    future_weights: tuple[float, ...] = ()
    """Multi-token prediction: loss weights of the 2nd, 3rd, ... token ahead, from the same logits, in training; empty:
    off."""
    future_until: float = 0.5
    """Fraction of training at which that loss has decayed to zero, linearly."""

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
        if self.parallel_lanes not in (1, 2) or (self.parallel_lanes == 2 and self.parallel_from < 0):
            raise PgolfError(
                f"model.parallel_lanes is {self.parallel_lanes}; it must be 1, or 2 with model.parallel_from set"
            )
        if self.head_gate not in HEAD_GATES:
            raise PgolfError(f"model.head_gate is {self.head_gate!r}; choose {', '.join(HEAD_GATES)}")
        if self.bigram_rows == 1 or min(self.bigram_rows, self.embed_dim) < 0:
            raise PgolfError("model.bigram_rows and model.embed_dim must be 0 (off) or more than 1")
        if self.asymmetric_softcap and self.logit_softcap <= 0:
            raise PgolfError("model.asymmetric_softcap needs model.logit_softcap above 0")
        if self.canon_taps < 0 or self.copy_depth < 1 or any(order < 1 for order in self.copy_orders):
            raise PgolfError(
                "model.canon_taps must be 0 or more, model.copy_depth and every model.copy_orders 1 or more"
            )
        if self.copy_orders and (self.embed_dim or not self.tied_head):
            raise PgolfError("model.copy_orders needs the tied embedding: leave model.embed_dim and model.tied_head")
        if (self.copy_logits or self.copy_token) and not self.copy_orders:
            raise PgolfError("model.copy_logits and model.copy_token need model.copy_orders")
        for name in ("layer_windows", "value_embed_layers"):
            if any(value < 0 for value in getattr(self, name)):
                raise PgolfError(f"model.{name} holds a negative number: {list(getattr(self, name))}")
        if len(self.layer_windows) not in (0, self.num_layers):
            raise PgolfError(
                f"model.layer_windows must have one entry per layer ({self.num_layers}), got {len(self.layer_windows)}"
            )
        if any(layer >= self.num_layers for layer in self.value_embed_layers):
            raise PgolfError(
                f"model.value_embed_layers: {max(self.value_embed_layers)} is out of range (0..{self.num_layers - 1})"
            )
        head_dim = self.dim // self.num_heads
        if (self.rope_dims or head_dim) % 2 or self.rope_dims > head_dim or self.rope_dims < 0:
            raise PgolfError(
                f"model.rope_dims is {self.rope_dims}; it must be even and at most the head dimension {head_dim}"
            )
        if self.key_offset and not 0 < self.rope_dims < head_dim:
            raise PgolfError(
                f"model.key_offset shifts the dimensions without rotation: set model.rope_dims below {head_dim}"
            )
        last = self.loop_last % self.num_layers if self.loop_last < 0 else self.loop_last
        if not 0 <= self.loop_first <= last < self.num_layers:
            raise PgolfError(
                f"model.loop_first = {self.loop_first} and model.loop_last = {self.loop_last} are not a range within "
                f"model.num_layers = {self.num_layers} layers"
            )
        if (
            self.parallel_lanes == 2
            and self.parallel_from <= last
            and (self.loop_passes > 1 or self.eval_loop_passes > 1)
        ):
            raise PgolfError("model.parallel_lanes = 2 needs model.parallel_from after the looped layers")

    def breakpoints(self) -> list[float]:
        """Fractions of training at which the executed layers or the shape of the loss change."""
        return [self.loop_from, *([self.future_until] if self.future_weights else [])]
