"""Adapters per document, and phases of global learning between them.

Every linear map gets `y += (alpha / r) * B (A x)` and the head the same on the logits, with an A and a B of its own for
each of the documents that are adapted side by side (records 2026-03-17 and later, PR #1530). B starts at zero with
every document. Chunk by chunk: one forward over the last `seq_len` tokens up to the chunk's end scores the chunk, and
its loss is the step's, so nothing is computed twice. Documents are taken longest first, so that those of one batch end
together; none depends on another.

`phased` (PR #1610, #1626) cuts the documents, in stream order, into phases; after each phase the model's own weights
learn from all documents scored so far.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf.evaluate import windows
from pgolf.evaluate.evaluator import Trace
from pgolf.evaluate.ttt.optimizer import Learner
from pgolf.evaluate.ttt.task import Clock, Task
from pgolf.model.gpt import GPT
from pgolf.model.layers import Linear

BETA2 = 0.99  # record 2026-04-27
EPSILON = 1e-10  # record 2026-04-27

Document = tuple[int, int]
"""First and end of its inputs; its targets are first + 1 .. end."""


def run(task: Task, phases: int) -> Trace:
    """Score every document with adapters of its own; contexts never cross documents."""
    documents = windows.segments(task.tokens, task.bos_id)
    clock = Clock(task)
    learner = Learner(task.model, replace(task.ttt, decay=0.0)) if phases > 1 else None
    step = global_steps = 0
    edges = np.linspace(0, len(documents), phases + 1).round().astype(int).tolist()
    left = len(task.tokens) - 1
    for phase, (first, end) in enumerate(pairwise(edges)):
        ordered = sorted(documents[first:end], key=lambda document: document[0] - document[1])
        for at in range(0, len(ordered), task.ttt.lora_documents):
            group = ordered[at : at + task.ttt.lora_documents]
            left -= sum(stop - start for start, stop in group)
            step = _adapt(task, group, step, clock, left)
        if learner is not None and phase + 1 < phases and end > 0:
            _learn_globally(task, learner, documents[:end], (phase + 1) / phases, clock, left)
            global_steps = learner.steps
    return task.recorder.trace(
        documents=len(documents), steps=step, global_steps=global_steps, out_of_time=clock.stopped
    )


class Adapters:
    """One A and one B per adapted map and document."""

    def __init__(self, model: GPT, documents: int, rank: int, alpha: float, device: torch.device) -> None:
        self._scale = alpha / rank
        self._maps: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        generator = torch.Generator().manual_seed(0)
        for module in model.modules():
            if isinstance(module, Linear):
                self._maps[module] = self._pair(documents, rank, module.in_features, module.out_features, generator)
        config = model.config
        self._head = self._pair(documents, rank, config.dim, config.vocab_size, generator)
        self.parameters = [half for pair in (*self._maps.values(), self._head) for half in pair]
        for index, half in enumerate(self.parameters):
            self.parameters[index] = half.to(device).requires_grad_()
        halves = iter(self.parameters)
        self._maps = {module: (next(halves), next(halves)) for module in self._maps}
        self._head = next(halves), next(halves)

    @contextmanager
    def active(self) -> Iterator[None]:
        """The model with the adapters on; its rows are the documents."""
        hooks = [
            module.register_forward_hook(lambda _, given, made, pair=pair: made + self._added(given[0], pair))
            for module, pair in self._maps.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def on_logits(self, hidden: Tensor) -> Tensor:
        """What the head's adapters add: hidden (B, T, dim) -> (B, T, vocab_size)."""
        return self._added(hidden, self._head).float()

    def _added(self, x: Tensor, pair: tuple[Tensor, Tensor]) -> Tensor:
        """x (B, T, in) -> (B, T, out)"""
        down, up = pair
        return self._scale * (x @ down.to(x.dtype).mT) @ up.to(x.dtype).mT

    @staticmethod
    def _pair(
        documents: int, rank: int, inputs: int, outputs: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        bound = inputs**-0.5
        down = (torch.rand(1, rank, inputs, generator=generator) * 2 - 1) * bound
        return down.repeat(documents, 1, 1), torch.zeros(documents, outputs, rank)


def _adapt(task: Task, group: Sequence[Document], step: int, clock: Clock, left: int) -> int:
    """Score a group of documents side by side. Returns the next free evaluation step."""
    ttt, model, seq_len = task.ttt, task.model, task.settings.seq_len
    model.requires_grad_(False)
    adapters = Adapters(model, len(group), ttt.lora_rank, ttt.lora_alpha, task.device)
    optimizer = torch.optim.Adam(adapters.parameters, lr=ttt.lora_lr, betas=(0.0, BETA2), eps=EPSILON, foreach=True)
    chunk = min(ttt.chunk_tokens, task.settings.stride)
    longest = max(end - first for first, end in group)
    with adapters.active():
        for begin in range(0, longest, chunk):
            rows = [(first + begin, min(first + begin + chunk, end)) for first, end in group]  # targets start+1..stop
            live = [index for index, (start, stop) in enumerate(rows) if stop > start]
            reach = max(0, begin + chunk - seq_len)
            inputs = np.zeros((len(group), begin + chunk - reach), dtype=np.int64)
            for index in live:
                first, stop = group[index][0] + reach, rows[index][1]
                inputs[index, : stop - first] = task.tokens[first:stop]
            learns = begin + chunk < longest and ttt.lora_lr > 0 and clock.may_learn(left + len(live) * chunk)
            begun = task.elapsed
            with torch.set_grad_enabled(learns):
                hidden = model.hidden(torch.from_numpy(inputs).to(task.device))[:, begin - reach :]  # (B, chunk, dim)
                logits = model.logits(hidden) + adapters.on_logits(hidden)
                loss = _record(task, logits, rows, live, step)
            clock.scored(task.elapsed - begun, sum(rows[index][1] - rows[index][0] for index in live))
            if learns:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            step += 1
    return step


def _record(task: Task, logits: Tensor, rows: Sequence[Document], live: Sequence[int], step: int) -> Tensor:
    """Write down a chunk's scores; returns the sum over documents of each one's mean loss."""
    total = logits.new_zeros(())
    for index in live:
        start, stop = rows[index]
        own = logits[index, : stop - start]
        expected = torch.from_numpy(task.tokens[start + 1 : stop + 1].astype(np.int64)).to(task.device)
        losses = F.cross_entropy(own, expected, reduction="none")
        targets = np.arange(start, stop)
        task.recorder.add(targets, losses.detach().double().cpu().numpy(), step)
        task.recorder.keep(targets, own)
        total = total + losses.mean()
    return total


def _learn_globally(
    task: Task, learner: Learner, documents: Sequence[Document], done: float, clock: Clock, left: int
) -> None:
    """The model's own weights learn from all scored documents, in rows of the context's length."""
    length = task.settings.seq_len
    scored = task.tokens[: documents[-1][1] + 1].astype(np.int64)
    rows = [scored[at : at + length + 1] for at in range(0, len(scored) - length, length)] or [scored]
    for parameter in learner.parameters:
        parameter.requires_grad_(True)
    for _ in range(task.ttt.epochs):
        for at in range(0, len(rows), task.settings.batch_windows):
            if not clock.may_learn(left):
                return
            ids = torch.from_numpy(np.stack(rows[at : at + task.settings.batch_windows])).to(task.device)
            learner.step(task.model.token_losses(ids[:, :-1], ids[:, 1:]).mean(), done)
