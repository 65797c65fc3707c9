"""Test-time training, score first: the stream is cut in chunks, and each is scored before anything learns from it.

`sgd` is what the records do (PR #461, #549, #1413): score a chunk with sliding windows, then train on it for a few
epochs with a learning rate that falls as a cosine over the chunks. The last chunk is not trained on.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pgolf.config.evaluate import EvaluateConfig
from pgolf.config.ttt import TttConfig
from pgolf.evaluate import windows
from pgolf.evaluate.evaluator import OnProgress, Trace
from pgolf.evaluate.sliding import batched, check_stream, score_windows, targets_of
from pgolf.evaluate.windows import Window
from pgolf.model.gpt import GPT
from pgolf.runtime import Runtime


@dataclass(frozen=True)
class TttEvaluator:
    """A model that learns from the scored part of the stream. The model handed in is left as it was."""

    model: GPT
    settings: EvaluateConfig
    ttt: TttConfig
    runtime: Runtime
    on_progress: OnProgress | None = None

    def score(self, tokens: np.ndarray, positions: Sequence[int] = ()) -> Trace:
        """See `Evaluator.score`; a step of `Trace.order` is a chunk."""
        check_stream(tokens, positions)
        model = copy.deepcopy(self.model)
        settings = self.settings
        bos = model.config.bos_id if settings.reset_at_documents else None
        count = len(tokens) - 1
        nll, order, times = np.zeros(count), np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
        log_probs: dict[int, np.ndarray] = {}
        wanted, done, total = set(positions), 0, 0.0
        chunks = _chunks(windows.plan(tokens, settings.seq_len, settings.stride, bos), self.ttt.chunk_tokens)
        optimizer = torch.optim.SGD(model.parameters(), lr=self.ttt.lr, momentum=0.9)
        for index, chunk in enumerate(chunks):
            model.eval()
            for batch in batched(chunk, settings.batch_windows):
                targets = targets_of(batch)
                nll[targets], found = score_windows(model, tokens, batch, wanted, self.runtime.device)
                order[targets] = index
                np.add.at(times, targets, 1)
                log_probs |= found
                done, total = done + targets.size, total + float(nll[targets].sum())
            if self.on_progress is not None:
                self.on_progress(done, total / done)
            if index + 1 < len(chunks):
                first, last = chunk[0].stop - chunk[0].scored, chunk[-1].stop
                for group in optimizer.param_groups:
                    group["lr"] = self.ttt.lr * 0.5 * (1 + math.cos(math.pi * index / max(1, len(chunks) - 1)))
                self._learn(model, optimizer, tokens[first : last + 1])
        windows.check_coverage(times)
        return Trace(nll=nll, order=order, log_probs=log_probs)

    def _learn(self, model: GPT, optimizer: torch.optim.Optimizer, scored: np.ndarray) -> None:
        """Train on a stretch of scored tokens, cut in rows of the context's length."""
        length = min(self.settings.seq_len, len(scored) - 1)
        rows = (len(scored) - 1) // length
        stream = torch.from_numpy(scored[-rows * length - 1 :].astype(np.int64)).to(self.runtime.device)
        inputs, targets = stream[:-1].view(rows, length), stream[1:].view(rows, length)
        model.train()
        for _ in range(self.ttt.epochs):
            optimizer.zero_grad()
            model.token_losses(inputs, targets).mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()


def _chunks(plan: Sequence[Window], chunk_tokens: int) -> list[list[Window]]:
    """Windows in stream order, cut where a chunk has scored its `chunk_tokens` targets."""
    chunks: list[list[Window]] = []
    held = chunk_tokens
    for window in plan:
        if held >= chunk_tokens:
            chunks.append([])
            held = 0
        chunks[-1].append(window)
        held += window.scored
    return chunks
