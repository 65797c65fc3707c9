"""Loss on the held-out slice of train tokens: what averages and settings are chosen by, never val."""

import torch

from pgolf.model.gpt import GPT
from pgolf.tokens.shards import TokenStream

_BATCH_TOKENS = 8192


def holdout_loss(model: GPT, stream: TokenStream, seq_len: int, device: torch.device) -> float:
    """Mean nats per token over disjoint windows of `seq_len` tokens; `nan` when the slice is shorter than two tokens.

    The model is put in evaluation mode, looped as at the end of training, and its mode given back.
    """
    training = model.training
    model.eval()
    model.set_progress(1.0)
    tokens = torch.from_numpy(stream[0 : len(stream)].astype("int64"))
    length = min(seq_len, len(tokens) - 1)
    if length < 1:
        return float("nan")
    rows = (len(tokens) - 1) // length
    inputs = tokens[: rows * length].view(rows, length)
    targets = tokens[1 : rows * length + 1].view(rows, length)
    total = torch.zeros((), dtype=torch.float64)
    per_batch = max(1, _BATCH_TOKENS // length)
    with torch.inference_mode():
        for start in range(0, rows, per_batch):
            part = slice(start, start + per_batch)
            total += model.token_losses(inputs[part].to(device), targets[part].to(device)).double().sum().cpu()
    model.train(training)
    return float(total) / (rows * length)
