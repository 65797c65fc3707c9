"""Floating-point operations of training, the way model-FLOP utilization counts them.

Six operations per executed weight and token (a multiplication and an addition, forward once and backward twice), and
attention's own: two products of every query with every key it sees, three times. Looped layers count every pass;
embedding lookups, norms, softmaxes and recomputation are not counted.
"""

from torch import nn

from pgolf.model.gpt import GPT


def training_flops_per_token(model: GPT, seq_len: int) -> float:
    """Operations per token of one forward and backward pass over sequences of `seq_len`, at the depth run now."""
    config = model.config
    head_weights = (config.embed_dim or config.dim) * config.vocab_size
    once = sum(module.weight.numel() for name, module in model.named_modules() if _counted(name, module))
    if config.embed_dim:
        once += config.embed_dim * config.dim  # the projection runs before the head as well
    weights, pairs = once + head_weights, 0.0
    windows = config.layer_windows or (0,) * config.num_layers
    for layer in model.layer_order():
        weights += sum(part.weight.numel() for part in model.blocks[layer].modules() if isinstance(part, nn.Linear))
        pairs += _keys_seen(seq_len, windows[layer])
    return 6.0 * weights + 12.0 * config.dim * pairs


def _counted(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and not name.startswith("blocks.") and name != "lm_head"


def _keys_seen(seq_len: int, window: int) -> float:
    """Keys a query sees on average under the causal mask."""
    if not 0 < window < seq_len:
        return (seq_len + 1) / 2
    return (window * (window + 1) / 2 + (seq_len - window) * window) / seq_len
