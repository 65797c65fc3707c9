"""Next-token predictors for the range coder: give a distribution, then take the token.

A predictor never sees a token before it has given the distribution for it, so encoder and decoder can drive it alike.
Every forward has the same shape and the same known tokens in both, hence the same bits on one machine and one version
of torch. No path chosen by timing is used here: it could differ from run to run.
"""

import copy
from typing import Protocol

import numpy as np
import torch

from pgolf.config.evaluate import EvaluateConfig
from pgolf.config.ttt import TttConfig
from pgolf.errors import PgolfError
from pgolf.evaluate.sliding import expected_tokens, previous_tokens, scored_logits, targets_of
from pgolf.evaluate.ttt.fast_output import FastOutput
from pgolf.evaluate.ttt.optimizer import Learner
from pgolf.evaluate.windows import Window
from pgolf.model.gpt import GPT
from pgolf.model.key_value_cache import KeyValueCache


class Predictor(Protocol):
    """Several texts side by side; `rows` of them are still running, in a fixed order."""

    rows: int

    def predict(self) -> np.ndarray:
        """(rows, vocab_size) float64 probabilities of each running text's next token."""
        ...

    def reveal(self, tokens: np.ndarray) -> None:
        """Take the next (rows,) tokens; texts that end with theirs stop running."""
        ...


def probabilities(logits: torch.Tensor) -> np.ndarray:
    """(n, vocab_size) float64 probabilities of float32 logits."""
    values = logits.double().cpu().numpy()
    values -= values.max(axis=-1, keepdims=True)
    np.exp(values, out=values)
    return values / values.sum(axis=-1, keepdims=True)


class Documents:
    """Documents side by side, each alone: its windows begin at its own BOS, and another BOS ends it.

    The windows are those of `evaluate.windows.plan` with contexts reset at documents, so the bits spent are those of
    sliding-window evaluation with `evaluate.reset_at_documents`.
    """

    def __init__(self, model: GPT, rows: int, seq_len: int, stride: int) -> None:
        self._model, self._seq_len, self._stride = model, seq_len, stride
        self._device = next(model.parameters()).device
        self._bos = model.config.bos_id
        self.rows = rows
        self._tokens = np.full((rows, seq_len + stride), self._bos, dtype=np.int64)
        # What the model bars may begin before the window.
        self._last = np.full((rows, 1 if model.barred is None else model.barred.reach), self._bos, dtype=np.int64)
        self._known = 1  # tokens known of each running row, from the window's first on
        self._cache = KeyValueCache(seq_len)

    @torch.no_grad()
    def predict(self) -> np.ndarray:
        if self._known > self._seq_len:  # the next window begins `stride` further on
            self._tokens = np.roll(self._tokens, -self._stride, axis=1)
            self._known -= self._stride
            self._cache.start()
        window = torch.from_numpy(self._tokens[:, : self._known]).to(self._device)
        last = torch.from_numpy(self._last).to(self._device)
        return probabilities(self._model.logits(self._model.hidden(window, 1, self._cache)[:, 0], last))

    def reveal(self, tokens: np.ndarray) -> None:
        self._tokens[:, self._known] = tokens
        self._last = np.concatenate([self._last[:, 1:], tokens[:, None].astype(np.int64)], axis=1)
        self._known += 1
        running = tokens != self._bos
        self._tokens, self._last = self._tokens[running], self._last[running]
        self._cache.keep(torch.from_numpy(running).to(self._device))
        self.rows = int(running.sum())


class Stream:
    """One stream of documents under the windows of an evaluation, whose contexts cross documents unless reset.

    Its bits are those that the evaluation of the same model reports, to the coder's rounding. It ends after `count`
    tokens, the first one, which is known, included; with None it goes on as long as it is asked.
    """

    def __init__(self, model: GPT, settings: EvaluateConfig, first: int, count: int | None) -> None:
        self._model, self._settings, self._count = model, settings, count
        self._device = next(model.parameters()).device
        self._tokens = np.zeros(count or 1024, dtype=np.int64)
        self._tokens[0], self._known = first, 1
        self._start = 0
        self._cache = KeyValueCache(settings.seq_len)
        self.rows = int(count is None or count > 1)

    @torch.no_grad()
    def predict(self) -> np.ndarray:
        known = self._tokens[: self._known]
        if self._settings.reset_at_documents and known[-1] == self._model.config.bos_id:
            self._start = self._known - 1
            self._cache.start()
        if self._known - self._start > self._settings.seq_len:
            self._start += self._settings.stride
            self._cache.start()
        window = torch.from_numpy(self._tokens[self._start : self._known][None]).to(self._device)
        last = previous_tokens(self._model, self._tokens, np.array([self._known - 1]), self._device)
        return self._distribution(self._model.logits(self._model.hidden(window, 1, self._cache)[:, 0], last))

    def _distribution(self, logits: torch.Tensor) -> np.ndarray:
        return probabilities(logits)

    def reveal(self, tokens: np.ndarray) -> None:
        if self._known == len(self._tokens):
            self._tokens = np.concatenate([self._tokens, np.zeros_like(self._tokens)])
        self._tokens[self._known] = tokens[0]
        self._known += 1
        self.rows = int(self._count is None or self._known < self._count)


class LearningStream(Stream):
    """A stream whose model learns from every window once all its targets are known: `ttt.method = "sgd"`.

    The same steps as `evaluate.ttt.dynamic_evaluation`, without its time cap: a decoder could not repeat decisions that
    depend on the clock. Raises PgolfError for settings that it cannot follow token by token.
    """

    def __init__(self, model: GPT, settings: EvaluateConfig, ttt: TttConfig, first: int, count: int | None) -> None:
        if count is None and ttt.schedule != "constant":
            raise PgolfError(
                f"ttt.schedule = {ttt.schedule} needs the length of the text first; only constant does not"
            )
        if ttt.method != "sgd" or ttt.chunk_tokens > settings.stride or settings.reset_at_documents:
            raise PgolfError(
                f"test-time training by {ttt.method} in chunks of {ttt.chunk_tokens} tokens cannot be followed token "
                "by token; only sgd in chunks of evaluate.stride tokens or fewer, contexts not reset, can"
            )
        if ttt.mixing_lr:
            raise PgolfError("context mixing cannot be followed token by token; score with ttt.mixing_lr = 0")
        super().__init__(copy.deepcopy(model).eval(), settings, first, count)
        self._ttt, self._learner = ttt, Learner(self._model, ttt)
        fast = bool(ttt.output_lr or ttt.output_stream_lr)
        self._output = FastOutput(model.config.vocab_size, model.config.bos_id, ttt) if fast else None
        self._slopes: list[np.ndarray] = []
        self._scored = 0  # targets of the window now that have come

    def _distribution(self, logits: torch.Tensor) -> np.ndarray:
        if self._output is None:
            return probabilities(logits)
        row = logits[0].float().cpu().numpy()
        return self._output.predict(int(self._tokens[self._known - 1]), row)[None]

    def reveal(self, tokens: np.ndarray) -> None:
        super().reveal(tokens)
        self._scored += 1
        if self._output is not None:
            self._slopes.append(self._output.learn(int(tokens[0])))
        if self.rows and self._known - self._start > self._settings.seq_len:
            self._learn()

    def _learn(self) -> None:
        window = Window(self._start, self._known - 1, self._scored)
        if self._ttt.epochs and self._ttt.lr:
            logits = scored_logits(self._model, self._tokens, [window], self._device)
            if self._output is None:
                expected = expected_tokens(self._tokens, targets_of([window]), self._device)
                loss = torch.nn.functional.cross_entropy(logits, expected)
            else:
                slopes = torch.from_numpy(np.stack(self._slopes).astype(np.float32)).to(self._device)
                loss = (logits * slopes).sum() / len(slopes)
            self._learner.step(loss, window.stop / ((self._count or len(self._tokens)) - 1))
            self._cache.start()
        self._slopes, self._scored = [], 0
