"""Sliding-window evaluation: every target scored once, with close to `seq_len` tokens before it.

`windowed` is the field's own definition: a target sees its window and nothing before. `banded` is one pass over the
stream with every layer's attention limited to the last `seq_len` tokens, so nothing is computed twice and deeper
layers see further back.

Unlike the plain evaluator (one window after another, all logits, kept in the tests as the reference) it computes
windows in batches, the last block and the logits of the scored positions alone, and shares the batches between ranks.
Windows are cut into the same batches whatever the number of ranks, so two ranks add nothing but the order of a sum of
zeros.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from pgolf.config.evaluate import EvaluateConfig
from pgolf.errors import PgolfError
from pgolf.evaluate import banded, ranks, windows
from pgolf.evaluate.distributions import chosen, parts
from pgolf.evaluate.evaluator import OnProgress, Positions, Trace
from pgolf.evaluate.windows import Window
from pgolf.model.gpt import GPT
from pgolf.model.paths import scoring_graph, without_graph
from pgolf.runtime import Runtime

Result = TypeVar("Result")


@dataclass(frozen=True)
class SlidingEvaluator:
    """A fixed model over sliding windows. `seq_len` must be set: the training length is known to the stage."""

    model: GPT
    settings: EvaluateConfig
    runtime: Runtime
    on_progress: OnProgress | None = None

    def planned(self, tokens: np.ndarray) -> np.ndarray:
        """The step of each target, (N-1,): one step for all."""
        return np.zeros(len(tokens) - 1, dtype=np.int64)

    def score(self, tokens: np.ndarray, positions: Positions = ()) -> Trace:
        """See `Evaluator.score`. Raises PgolfError for a stream with nothing to predict."""
        check_stream(tokens, positions)
        settings, runtime = self.settings, self.runtime
        count = len(tokens) - 1
        nll, times = np.zeros(count), np.zeros(count, dtype=np.int64)
        wanted = parts(positions) if positions else {}
        found: dict[int, np.ndarray] = {}
        batches = batched(*plan_windows(self.model, tokens, settings))[runtime.world_rank :: runtime.world_size]
        done, total = 0, 0.0
        with scoring(self.model, settings):
            scoring_graph(self.model, runtime, (settings.batch_windows, settings.seq_len, settings.stride))
            scored = side_by_side(
                lambda batch: score_windows(self.model, tokens, batch, wanted, runtime.device), batches, runtime
            )
            for batch, (losses, log_probs) in zip(batches, scored, strict=True):
                targets = targets_of(batch)
                nll[targets] = losses
                np.add.at(times, targets, 1)
                found |= log_probs
                done, total = done + targets.size, total + float(losses.sum())
                if self.on_progress is not None:
                    self.on_progress(done, total / done)
        nll, times = ranks.total(nll, runtime), ranks.total(times, runtime)
        found = dict(ranks.joined([*found.items()], runtime))
        windows.check_coverage(times)
        return Trace(nll=nll, order=np.zeros(count, dtype=np.int64), log_probs=found)


@contextmanager
def scoring(model: GPT, settings: EvaluateConfig) -> Iterator[None]:
    """Put the model into evaluation mode with the evaluation's attention window; remove the window afterwards.

    Raises PgolfError for banded contexts of a model whose counts reach through the whole row.
    """
    if settings.context == "banded" and model.config.document_counts:
        raise PgolfError(
            "evaluate.context is 'banded', but model.document_counts reaches beyond the band; set evaluate.context = "
            "'windowed'"
        )
    model.eval()
    model.set_window(settings.seq_len if settings.context == "banded" else 0)
    try:
        yield
    finally:
        model.set_window(0)
        without_graph(model)


def side_by_side(
    work: Callable[[list[Window]], Result], batches: Sequence[list[Window]], runtime: Runtime
) -> Iterator[Result]:
    """The results in order, on a CPU one batch per core at a time.

    The operations of a small model are too short for several cores: one batch per core is faster than all cores at
    one batch, with the same results.
    """
    if runtime.device.type != "cpu" or runtime.threads < 2 or len(batches) < 2:
        yield from map(work, batches)
        return
    before = torch.get_num_threads()
    yield work(batches[0])  # alone, so that the model's caches are filled before the threads start
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(runtime.threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(work, batches[1:])
    finally:
        torch.set_num_threads(before)


def plan_windows(model: GPT, tokens: np.ndarray, settings: EvaluateConfig) -> tuple[list[Window], int]:
    """The windows that score a stream under these settings, in stream order, and how many make a batch."""
    bos = model.config.bos_id if settings.reset_at_documents else None
    if settings.context == "windowed":
        return windows.plan(tokens, settings.seq_len, settings.stride, bos), settings.batch_windows
    return banded.plan(model, tokens, settings, bos)


def targets_of(batch: Sequence[Window]) -> np.ndarray:
    """Index into the (N-1,) scores of every target that the windows score, in the order `score_windows` returns."""
    return np.concatenate([np.arange(window.stop - window.scored, window.stop) for window in batch])


def rows_of(
    tokens: np.ndarray, batch: Sequence[Window], device: torch.device, shape: tuple[int, ...] | None = None
) -> tuple[Tensor, Tensor, int]:
    """The windows as rows of one batch; shape: (rows, tokens, scored positions) to fill up to where that fits.

    Returns the tokens (B, T), an index (n,) of the scored positions into the flattened last `last` positions of each
    row, and `last`: nothing further from a row's end is scored.
    """
    count, length = len(batch), max(window.length for window in batch)
    first = min(window.length - window.scored for window in batch)
    if shape is not None and first + shape[2] == shape[1]:
        count, length = shape[:2]
    inputs = np.zeros((count, length), dtype=np.int64)  # padding comes after all scored positions
    for row, window in enumerate(batch):
        inputs[row, : window.length] = tokens[window.start : window.stop]
    last = length - first
    picked = [np.arange(w.length - w.scored, w.length) - first + row * last for row, w in enumerate(batch)]
    return torch.from_numpy(inputs).to(device), torch.from_numpy(np.concatenate(picked)).to(device), last


def scored_hidden(model: GPT, tokens: np.ndarray, batch: Sequence[Window], device: torch.device) -> Tensor:
    """Hidden states (n, dim) that predict the targets of `targets_of(batch)`, from one forward."""
    inputs, picked, last = rows_of(tokens, batch, device, model.scored_shape)
    return model.hidden(inputs, last).flatten(0, 1)[picked]


def scored_logits(model: GPT, tokens: np.ndarray, batch: Sequence[Window], device: torch.device) -> Tensor:
    """Logits (n, vocab_size) of the targets of `targets_of(batch)`, from one forward."""
    hidden = scored_hidden(model, tokens, batch, device)
    return model.logits(hidden, previous_tokens(model, tokens, targets_of(batch), device))


def previous_tokens(model: GPT, tokens: np.ndarray, targets: np.ndarray, device: torch.device) -> Tensor | None:
    """(n, `GPT.barred.reach`) int64 ids of the tokens before the targets, given as index into the scores, the last one
    last; BOS before the stream. None where the model bars nothing."""
    if model.barred is None:
        return None
    places = targets[:, None] + np.arange(1 - model.barred.reach, 1)
    found = np.where(places < 0, model.config.bos_id, tokens[np.maximum(places, 0)])
    return torch.from_numpy(found.astype(np.int64)).to(device)


def previous_in_rows(model: GPT, rows: Tensor) -> Tensor | None:
    """`previous_tokens` after each of the tokens (B, T): (B, T, reach), BOS before each row."""
    if model.barred is None:
        return None
    reach = model.barred.reach
    return torch.nn.functional.pad(rows, (reach - 1, 0), value=model.config.bos_id).unfold(1, reach, 1)


def expected_tokens(tokens: np.ndarray, targets: np.ndarray, device: torch.device) -> Tensor:
    """(n,) int64 ids of the targets, given as index into the scores."""
    return torch.from_numpy(tokens[targets + 1].astype(np.int64)).to(device)


@torch.no_grad()
def score_windows(
    model: GPT, tokens: np.ndarray, batch: Sequence[Window], wanted: Mapping[int, Any], device: torch.device
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Nats of the targets of `targets_of(batch)` in one forward, and whole distributions at the requested positions."""
    hidden, targets = scored_hidden(model, tokens, batch, device), targets_of(batch)
    ids = previous_tokens(model, tokens, targets, device), expected_tokens(tokens, targets, device)
    return score_hidden(model, hidden, *ids, targets + 1, wanted)


def score_hidden(
    model: GPT,
    hidden: Tensor,
    previous: Tensor | None,
    expected: Tensor,
    positions: np.ndarray,
    wanted: Mapping[int, Any],
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Nats of the expected tokens, and distributions at the requested positions.

    hidden: (n, dim); previous: see `previous_tokens`; expected: (n,) int64 ids; positions: (n,) in the stream.
    Returns (n,) float64 and, by position, (vocab_size,) float64 log-probabilities or the wanted part of them.
    """
    losses = model.hidden_losses(hidden, expected, previous)

    def logits(rows: list[int]) -> Tensor:
        return model.logits(hidden[rows], None if previous is None else previous[rows])

    found = chosen(logits, positions, wanted) if wanted else {}
    return losses.double().cpu().numpy(), found


def check_stream(tokens: np.ndarray, positions: Positions) -> None:
    """Raise PgolfError when a stream has no target, or a requested position is not a target."""
    if len(tokens) < 2:
        raise PgolfError(f"a stream of {len(tokens)} tokens has nothing to predict; at least 2 are needed")
    outside = [position for position in positions if not 1 <= position < len(tokens)]
    if outside:
        raise PgolfError(f"position {outside[0]} is not a target: targets are 1 to {len(tokens) - 1}")


def batched(plan: Sequence[Window], size: int) -> list[list[Window]]:
    """Windows of like length together, so that little is padded; the sort is stable, so equal lengths stay in order."""
    ordered = sorted(plan, key=lambda window: (window.scored > window.length // 2, -window.length))
    batches: list[list[Window]] = []
    for window in ordered:
        if batches and len(batches[-1]) < size and _alike(batches[-1][0], window):
            batches[-1].append(window)
        else:
            batches.append([window])
    return batches


def _alike(first: Window, other: Window) -> bool:
    return other.length > first.length * 3 // 4 and (other.scored == other.length) == (first.scored == first.length)
