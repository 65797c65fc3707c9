"""Adapters per document, and phases of global learning between them.

Every linear map gets `y += (alpha / r) * B (A x)` and the head the same on the logits, with a separate A and B for each
of the documents that are adapted side by side (records 2026-03-17 and later, PR #1530). B starts at zero with
every document. Chunk by chunk: one forward over the last `seq_len` tokens up to the chunk's end scores the chunk, and
its loss is the step's, so nothing is computed twice. Documents are taken longest first, so that those of one batch end
together; none depends on another, so processes share them. Where time is short, the rest is scored without adapters.

`phased` (PR #1610, #1626) cuts the documents, in stream order, into phases; between two phases the model's own weights
learn from all documents scored so far, on all processes together.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf.config.ttt import TttConfig
from pgolf.evaluate import windows
from pgolf.evaluate.evaluator import Trace
from pgolf.evaluate.sliding import expected_tokens, previous_in_rows
from pgolf.evaluate.ttt import time_cap
from pgolf.evaluate.ttt.optimizer import Learner
from pgolf.evaluate.ttt.task import LEARNING, Method, Passes, Task
from pgolf.evaluate.windows import Window
from pgolf.model.gpt import GPT
from pgolf.model.layers import Linear
from pgolf.model.raised_logits import split

BETA2 = 0.99  # record 2026-04-27
EPSILON = 1e-10  # record 2026-04-27

Document = tuple[int, int]
"""First and end of its inputs; its targets are first + 1 .. end."""


class Group(NamedTuple):
    """Documents adapted side by side."""

    documents: Sequence[Document]  # the longest first
    chunk: int  # targets between two steps
    step: int  # evaluation step of its first chunk


def run(task: Task, phases: int = 1) -> Trace:
    """Score every document with separate adapters; contexts never cross documents."""
    clock, rank, size = task.clock, task.runtime.world_rank, task.runtime.world_size
    learner = Learner(task.model, replace(task.ttt, decay=0.0)) if phases > 1 else None
    plan = _plan(task, phases)
    mine = [_share(task, groups, size)[rank] for _, groups in plan]
    left = sum(_alone(task, group) for groups in mine for group in groups)
    steps = planned(task, phases)
    for phase, ((end, _), groups) in enumerate(zip(plan, mine, strict=True)):
        for group in groups:
            left -= _alone(task, group)
            if clock.may_learn(left + _alone(task, group)):
                _adapt(task, group, left)
            else:
                time_cap.score_alone(task, list(_windows(task, group.documents)), steps)
        if learner is not None and phase + 1 < phases and end and not clock.probing:
            before = learner.steps
            _learn_globally(task, learner, end, (phase + 1) / phases, left)
            if rank == 0 and learner.steps > before:
                task.recorder.learned(_steps(plan[: phase + 1]) - 1, 0, end - 1, learner.steps - before)
    if clock.probing:
        raise time_cap.Enough  # before anything that all processes do together
    stopped = not task.runtime.agree(not clock.stopped)
    task.recorder.gather_ranks(task.runtime)
    return task.recorder.trace(
        documents=len(windows.segments(task.tokens, task.bos_id)),
        steps=_steps(plan),
        global_steps=0 if learner is None else learner.steps,
        out_of_time=stopped,
    )


def passes(task: Task, phases: int = 1) -> Passes:
    """Of the process with the most to do: every chunk's forward and backward, then the rows of the global steps."""
    plan, size = _plan(task, phases), task.runtime.world_size
    alone = learning = 0.0
    for _, groups in plan:
        shares = _share(task, groups, size)
        alone += max(sum(_alone(task, group) for group in share) for share in shares)
        learning += max(sum(_adapting(task, group) for group in share) for share in shares)
    seen = sum(end for end, _ in plan[:-1])
    return Passes(alone, learning + LEARNING * task.ttt.epochs * seen / size)


def planned(task: Task, phases: int = 1) -> np.ndarray:
    """The step of each target: the same with and without the time to learn, and on every number of processes."""
    steps = np.empty(len(task.tokens) - 1, dtype=np.int64)
    for _, groups in _plan(task, phases):
        for group in groups:
            for first, end in group.documents:
                steps[first:end] = group.step + np.arange(end - first) // group.chunk
    return steps


LORA = Method(run, passes, rates=("lora_lr",), per_document=True, forgets=True, shared=True, steps=planned)
PHASED = Method(
    lambda task: run(task, task.ttt.phases),
    lambda task: passes(task, task.ttt.phases),
    steps=lambda task: planned(task, task.ttt.phases),
    rates=("lora_lr", "lr"),
    per_document=True,
    shared=True,
)


def _plan(task: Task, phases: int) -> list[tuple[int, list[Group]]]:
    """By phase: the end of its last document, and its groups. The same on every process, however many there are."""
    documents = windows.segments(task.tokens, task.bos_id)
    share = task.ttt.phase_share or (phases - 1) / phases
    edges = [*np.linspace(0, share * len(documents), phases).round().astype(int).tolist(), len(documents)]
    step, plan = 0, []
    for first, end in pairwise(edges):
        ordered = sorted(documents[first:end], key=lambda document: document[0] - document[1])
        groups: list[Group] = []
        for chunk, alike in itertools.groupby(ordered, lambda document: _chunk(task, document)):
            members = list(alike)
            for at in range(0, len(members), task.ttt.lora_documents):
                groups.append(Group(members[at : at + task.ttt.lora_documents], chunk, step))
                step += math.ceil(_longest(groups[-1]) / chunk)
        plan.append((documents[end - 1][1] if end else 0, groups))
    return plan


def _steps(plan: Sequence[tuple[int, Sequence[Group]]]) -> int:
    return max((group.step + math.ceil(_longest(group) / group.chunk) for _, groups in plan for group in groups))


def _chunk(task: Task, document: Document) -> int:
    """Targets between two steps in a document of this length."""
    length = document[1] - document[0]
    chunk = next((chunk for below, chunk in task.ttt.lora_chunks if length < below), task.ttt.chunk_tokens)
    return min(chunk, task.settings.stride)


def _longest(group: Group) -> int:
    return group.documents[0][1] - group.documents[0][0]


def _share(task: Task, groups: Sequence[Group], size: int) -> list[list[Group]]:
    """The groups of each process, costly ones first, each to whoever has least to do."""
    shares: list[list[Group]] = [[] for _ in range(size)]
    loads = [0.0] * size
    for group in sorted(groups, key=lambda group: -_adapting(task, group)):
        least = loads.index(min(loads))
        shares[least].append(group)
        loads[least] += _adapting(task, group)
    return shares


def _alone(task: Task, group: Group) -> float:
    """Token passes of scoring the documents with sliding windows."""
    seq_len, stride = task.settings.seq_len, task.settings.stride
    lengths = [end - first for first, end in group.documents]
    return float(sum(min(n, seq_len) + seq_len * math.ceil(max(0, n - seq_len) / stride) for n in lengths))


def _adapting(task: Task, group: Group) -> float:
    """Token passes of learning along the documents."""
    total = 0
    for begin in range(0, _longest(group), group.chunk):
        total += _live(group, begin) * min(begin + group.chunk, task.settings.seq_len)
    return LEARNING * total


def _live(group: Group, begin: int) -> int:
    """Number of documents that are longer than the given number of targets."""
    return sum(end - first > begin for first, end in group.documents)


class Adapters:
    """One A and one B per adapted map and document."""

    def __init__(self, model: GPT, documents: int, ttt: TttConfig, device: torch.device) -> None:
        rank, self._scale = ttt.lora_rank, ttt.lora_alpha / ttt.lora_rank
        self.live = documents
        """Number of documents left in the batch (the first ones)."""
        self._maps: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        generator = torch.Generator().manual_seed(0)
        for name, module in model.named_modules():
            if isinstance(module, Linear) and not name.endswith(ttt.lora_without):
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
        """Logits added by the head's adapters: hidden (B, T, dim) -> (B, T, vocab_size)."""
        return self._added(split(hidden, self._head[0].shape[-1])[0], self._head).float()

    def _added(self, x: Tensor, pair: tuple[Tensor, Tensor]) -> Tensor:
        """x (B, T, in) -> (B, T, out)"""
        down, up = (half[: self.live] for half in pair)
        return self._scale * (x @ down.to(x.dtype).mT) @ up.to(x.dtype).mT

    @staticmethod
    def _pair(
        documents: int, rank: int, inputs: int, outputs: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        bound = inputs**-0.5
        down = (torch.rand(1, rank, inputs, generator=generator) * 2 - 1) * bound
        return down.repeat(documents, 1, 1), torch.zeros(documents, outputs, rank)


def _adapt(task: Task, group: Group, left: float) -> None:
    """Score a group of documents side by side, learning while time permits; left: token passes of later groups."""
    ttt, model, seq_len, chunk = task.ttt, task.model, task.settings.seq_len, group.chunk
    model.requires_grad_(False)
    adapters = Adapters(model, len(group.documents), ttt, task.device)
    optimizer = torch.optim.AdamW(adapters.parameters, ttt.lora_lr, (0.0, BETA2), EPSILON, ttt.lora_decay, foreach=True)
    longest = _longest(group)
    own = _adapting(task, group) / LEARNING
    with adapters.active():
        for index, begin in enumerate(range(0, longest, chunk)):
            adapters.live = _live(group, begin)
            spans = [
                (first + begin, min(first + begin + chunk, end)) for first, end in group.documents[: adapters.live]
            ]
            reach = max(0, begin + chunk - seq_len)
            inputs = np.zeros((adapters.live, begin + chunk - reach), dtype=np.int64)  # padded after all that is scored
            for row, (start, stop) in enumerate(spans):
                inputs[row, : stop - start + begin - reach] = task.tokens[start - begin + reach : stop]
            learns = begin + chunk < longest and ttt.lora_lr > 0 and task.clock.may_learn(left + own)
            with torch.set_grad_enabled(learns):
                ids = torch.from_numpy(inputs).to(task.device)
                hidden = model.hidden(ids, chunk)  # (B, chunk, dim)
                previous = previous_in_rows(model, ids)
                previous = None if previous is None else previous[:, -hidden.shape[1] :]
                logits = model.logits(hidden, previous) + adapters.on_logits(hidden)
                loss = _record(task, logits, spans, group.step + index)
            if learns:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                for start, stop in spans:
                    task.recorder.learned(group.step + index, start, stop - 1)
            own -= inputs.size
            task.clock.took(LEARNING * inputs.size)


def _record(task: Task, logits: Tensor, spans: Sequence[Document], step: int) -> Tensor:
    """Write down a chunk's scores, targets start + 1 .. stop of each row; returns the sum of the rows' mean losses."""
    lengths = np.array([stop - start for start, stop in spans])
    inside = np.arange(logits.shape[1]) < lengths[:, None]  # (B, chunk)
    targets = np.concatenate([np.arange(start, stop) for start, stop in spans])
    picked = logits[torch.from_numpy(inside).to(task.device)]  # (n, vocab_size)
    losses = F.cross_entropy(picked, expected_tokens(task.tokens, targets, task.device), reduction="none")
    task.recorder.add(targets, losses.detach().double().cpu().numpy(), step)
    task.recorder.keep(targets, picked)
    share = torch.from_numpy(np.repeat(1.0 / lengths, lengths)).to(losses)
    return (losses * share).sum()


def _windows(task: Task, documents: Sequence[Document]) -> Iterator[Window]:
    """The windows of a sliding evaluation of documents."""
    for first, end in documents:
        for window in windows.plan(task.tokens[first : end + 1], task.settings.seq_len, task.settings.stride):
            yield Window(window.start + first, window.stop + first, window.scored)


def _learn_globally(task: Task, learner: Learner, end: int, done: float, left: float) -> None:
    """The model's own weights learn from all documents up to `end`, in rows of the context's length; every process
    takes its share of each step's rows.

    Gradients are taken row by row and summed in float64, so that any number of processes takes the same steps: in
    float32 the order of the sum moves the last bits, and Adam's first steps are the signs of gradients.
    """
    length, size = task.settings.seq_len, task.settings.batch_windows
    rank, processes = task.runtime.world_rank, task.runtime.world_size
    scored = task.tokens[: end + 1].astype(np.int64)
    rows = [scored[at : at + length + 1] for at in range(0, len(scored) - length, length)] or [scored]
    for parameter in learner.parameters:
        parameter.requires_grad_(True)
    sums = [torch.zeros_like(parameter, dtype=torch.float64) for parameter in learner.parameters]
    for _ in range(task.ttt.epochs):
        for at in range(0, len(rows), size):
            if not task.runtime.agree(task.clock.may_learn(left)):
                return
            batch = rows[at : at + size]
            torch._foreach_zero_(sums)
            for row in batch[rank::processes]:
                ids = torch.from_numpy(row[None]).to(task.device)
                learner.backward(task.model.token_losses(ids[:, :-1], ids[:, 1:]).mean())
                for total, parameter in zip(sums, learner.parameters, strict=True):
                    if parameter.grad is not None:
                        total += parameter.grad
            for total, parameter in zip(sums, learner.parameters, strict=True):
                if processes > 1:
                    dist.all_reduce(total)
                parameter.grad = (total / len(batch)).float()
            learner.follow(done)
