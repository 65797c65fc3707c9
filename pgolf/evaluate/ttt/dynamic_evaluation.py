"""`sgd`: the model's own weights learn chunk by chunk along the stream.

With chunks as short as the stride this is dynamic evaluation (Krause et al., arXiv 1709.07432): one window is one
forward, which scores its last targets and whose gradient the weights then follow. With longer chunks it is what the
records do (PR #461, #549, #1413): score all windows of the chunk, then train on it in rows for a few epochs. Learning
from the scored targets alone, and not also from the context, keeps short chunks from overfitting (+0.012 BPB
measured at 64 targets in 256). Over the logits learn fast output weights (`fast_output`), and over those, with
`ttt.mixing_lr`, `context_mixing` mixes in what the tokens' contexts say.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from pgolf.config.ttt import TttConfig
from pgolf.evaluate import windows
from pgolf.evaluate.evaluator import Trace
from pgolf.evaluate.sliding import expected_tokens, scored_logits, targets_of
from pgolf.evaluate.ttt import context_mixing, rows, time_cap
from pgolf.evaluate.ttt.fast_output import FastOutput
from pgolf.evaluate.ttt.optimizer import Learner
from pgolf.evaluate.ttt.task import LEARNING, Method, Passes, Task
from pgolf.evaluate.windows import Window


def run(task: Task) -> Trace:
    """Score and learn along the stream."""
    settings, ttt, clock = task.settings, task.ttt, task.clock
    chunks = _chunked(task)
    output: FastOutput | context_mixing.OverOutput | None = None
    if ttt.output_lr or ttt.output_stream_lr:
        output = FastOutput(task.model.config.vocab_size, task.bos_id, ttt)
        output = context_mixing.over(task, output) if ttt.mixing_lr else output
    learner = Learner(task.model, ttt)
    last = len(task.tokens) - 1
    left = float(sum(map(_length, chunks)))
    learned = 0
    for index, chunk in enumerate(chunks):
        if not clock.may_learn(left):
            rest = [window for later in chunks[index:] for window in later]
            time_cap.score_alone(task, rest, np.full(last, max(index, int(targets_of(rest[:1])[0]))))
            break
        left -= _length(chunk)
        learns = bool(ttt.epochs and ttt.lr) and chunk[-1].stop < last
        step, before = None if output is not None else index, learner.steps
        if len(chunk) == 1:
            with torch.set_grad_enabled(learns):
                loss = _score(task, chunk, output, step)
            if learns:
                learner.step(loss, chunk[-1].stop / last)
        else:
            with torch.no_grad():
                for at in range(0, len(chunk), settings.batch_windows):
                    _score(task, chunk[at : at + settings.batch_windows], output, step)
            first = chunk[0].stop - chunk[0].scored
            if learns:
                rows.train(task, learner, task.tokens[first : chunk[-1].stop + 1], chunk[-1].stop / last)
        if learns:
            used = targets_of(chunk)
            after = index if output is None else used[-1]
            task.recorder.learned(after, used[0], used[-1], learner.steps - before)
        clock.took(_passes_of(chunk, ttt))
        learned += learns
    return task.recorder.trace(
        chunks=len(chunks),
        chunks_learned=learned,
        steps=learner.steps,
        out_of_time=clock.stopped,
    )


def passes(task: Task) -> Passes:
    """One forward per window, one backward where weights learn; longer chunks are then trained on for `epochs`
    epochs."""
    chunks = _chunked(task)
    return Passes(sum(map(_length, chunks)), sum(_passes_of(chunk, task.ttt) for chunk in chunks))


METHOD = Method(run, passes, rates=("lr", "decay", "output_lr", "output_stream_lr"))


def _chunked(task: Task) -> list[list[Window]]:
    settings = task.settings
    bos = task.bos_id if settings.reset_at_documents else None
    return list(_chunks(windows.plan(task.tokens, settings.seq_len, settings.stride, bos), task.ttt.chunk_tokens))


def _length(chunk: Sequence[Window]) -> int:
    return sum(window.length for window in chunk)


def _passes_of(chunk: Sequence[Window], ttt: TttConfig) -> float:
    if len(chunk) == 1:  # the scoring forward is the learning one
        return _length(chunk) * (LEARNING if ttt.epochs and ttt.lr else 1)
    return _length(chunk) + LEARNING * ttt.epochs * sum(window.scored for window in chunk)


def _score(
    task: Task,
    batch: Sequence[Window],
    output: FastOutput | context_mixing.OverOutput | None,
    step: int | None,
) -> Tensor:
    """Score and record consecutive windows; returns a scalar with the gradient of their mean loss.

    step: the evaluation step; None when every target is a separate step.
    """
    targets = targets_of(batch)
    logits = scored_logits(task.model, task.tokens, batch, task.device)
    recorder = task.recorder
    if output is None:
        expected = expected_tokens(task.tokens, targets, task.device)
        losses = torch.nn.functional.cross_entropy(logits, expected, reduction="none")
        recorder.add(targets, losses.detach().double().cpu().numpy(), 0 if step is None else step)
        recorder.keep(targets, logits)
        return losses.mean()
    places = (targets + 1).tolist()
    held = {row for row, place in enumerate(places) if place in recorder.wanted}
    values = logits.detach().float().cpu().numpy()
    nll, slopes, found = output.score(task.tokens[targets], task.tokens[targets + 1], values, held, batch)
    recorder.add(targets, nll, targets)
    recorder.learned(targets[0], targets[0], targets[-1], len(targets), each=True)
    recorder.log_probs |= {places[row]: vector[recorder.wanted[places[row]]] for row, vector in found.items()}
    # The gradient is that of the fast weights' output: the model need not learn what the fast weights have learned.
    return (logits * torch.from_numpy(slopes).to(logits.device)).sum() / len(targets)


def _chunks(plan: Sequence[Window], chunk_tokens: int) -> Iterator[list[Window]]:
    """Windows in stream order, cut where a chunk has scored its `chunk_tokens` targets."""
    chunk: list[Window] = []
    held = 0
    for window in plan:
        chunk.append(window)
        held += window.scored
        if held >= chunk_tokens:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk
