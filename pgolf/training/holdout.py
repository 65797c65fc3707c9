"""The held-out slice: the last train tokens, never trained on, by which averages and settings are chosen (never val).

This is the only place that cuts the slice off, counts it and scores a model on it.
"""

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist

from pgolf.config import Config
from pgolf.errors import PgolfError
from pgolf.model.gpt import GPT
from pgolf.runtime import Runtime
from pgolf.tokens.byte_counts import ByteTable
from pgolf.tokens.shards import TokenStream

SHARE = 0.05
"""Part of the train tokens that is held out at most, whatever `train.holdout_tokens` asks for."""
_BATCH_TOKENS = 8192  # of one forward pass on a GPU: bounds the memory
_CPU_BATCH_TOKENS = 2048  # three fifths of the time of 8,192, whose tensors leave the caches


@dataclass(frozen=True, eq=False)
class Holdout:
    """A train stream in two parts: `training` is trained and calibrated on, `tokens` is held out."""

    training: TokenStream
    tokens: TokenStream

    @classmethod
    def of(cls, stream: TokenStream, config: Config) -> "Holdout":
        """Hold out `train.holdout_tokens`, at most `SHARE` of the stream, beginning with a document where there is one.

        Raises PgolfError when nothing would be left to train on.
        """
        wanted = min(config.train.holdout_tokens, int(len(stream) * SHARE))
        cut = len(stream) - wanted
        start = stream.find_after(config.model.bos_id, cut) if wanted else None
        return cls.recorded(stream, len(stream) - (cut if start is None else start))

    @classmethod
    def recorded(cls, stream: TokenStream, tokens: int) -> "Holdout":
        """The slice of a finished training run, whose manifest has the number of its tokens.

        Raises PgolfError when nothing is left to train on.
        """
        cut = len(stream) - tokens
        if cut < 2:
            raise PgolfError(f"holding out {tokens} tokens leaves none to train on: {stream.name} has {len(stream)}")
        return cls(stream.view(0, cut), stream.view(cut, len(stream)))

    def __len__(self) -> int:
        return len(self.tokens)

    def require(self) -> None:
        """Raises PgolfError when the slice is too short to score anything on."""
        if len(self) < 2:
            raise PgolfError(
                f"{self.training.name}: no train tokens are held out, so there is nothing to choose by; train with "
                "train.holdout_tokens > 0 on more text"
            )

    def loss(self, model: GPT, seq_len: int, runtime: Runtime, shared: bool = False) -> float:
        """Mean nats per token over disjoint windows of `seq_len` tokens; `nan` for a slice of fewer than two tokens.

        The model runs in evaluation mode, looped as at the end of training; its mode is restored afterwards.
        shared: every rank calls this and scores its share of the windows; all get the same result.
        """
        tokens = torch.from_numpy(self.tokens[0 : len(self)].astype("int64"))
        length = min(seq_len, len(tokens) - 1)
        if length < 1:
            return float("nan")
        training = model.training
        model.eval()
        model.set_progress(1.0)
        rows = (len(tokens) - 1) // length
        inputs = tokens[: rows * length].view(rows, length)
        targets = tokens[1 : rows * length + 1].view(rows, length)
        total = torch.zeros((), dtype=torch.float64)
        batch_tokens = _BATCH_TOKENS if runtime.device.type == "cuda" else _CPU_BATCH_TOKENS
        per_batch = max(1, batch_tokens // length)
        first, ranks = (runtime.world_rank, runtime.world_size) if shared else (0, 1)
        with torch.inference_mode():
            for start in range(first * per_batch, rows, ranks * per_batch):
                part = slice(start, start + per_batch)
                losses = model.token_losses(inputs[part].to(runtime.device), targets[part].to(runtime.device))
                total += losses.double().sum().cpu()
        model.train(training)
        if ranks > 1:
            on_device = total.to(runtime.device)
            dist.all_reduce(on_device)
            total = on_device.cpu()
        return float(total) / (rows * length)

    def holdout_metrics(self, nats_per_token: float, table: ByteTable | None = None) -> dict[str, float]:
        """A loss on the slice as metrics: nats per token and, with the table of bytes per piece, bits per byte, which
        alone is comparable between vocabularies. Empty for `nan`."""
        if math.isnan(nats_per_token):
            return {}
        score = {"holdout_nats_per_token": nats_per_token}
        if table is not None:
            bytes_per_token = float(table.count(self.tokens[:])[1:].mean())
            score["holdout_bits_per_byte"] = nats_per_token / math.log(2) / bytes_per_token
        return score
