"""Show a training run while `fit` makes its steps: a progress bar with loss and speed, and the expected passes."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from pgolf.config import TrainConfig
from pgolf.progress import Progress, Reporter
from pgolf.training.fit import At
from pgolf.training.nonfinite import StepResult

_PASSES_AFTER = 0.02  # fraction of training after which the pace is known well enough to tell the number of passes
_SHOW_SECONDS = 0.2  # between two updates of the progress bar
_RATE_SECONDS = 2.0  # that the shown tokens per second are a mean over, at least


class Display:
    """`Hooks.known` and `Hooks.stop` of a run that is watched."""

    def __init__(self, train: TrainConfig, train_tokens: int, reporter: Reporter, start: At) -> None:
        """train_tokens: length of the stream trained on; start: where this attempt begins."""
        self._train, self._train_tokens, self._reporter = train, train_tokens, reporter
        self._told = start.tokens > 0
        self._bar: Progress | None = None
        self._loss: float | None = None
        self._shown_at = self._rate = 0.0
        self._since, self._before = start, start

    @contextmanager
    def around(self, stop: AbstractContextManager[Callable[[], bool]]) -> Iterator[Callable[[], bool]]:
        """The context `stop` with a progress bar in it."""
        total = self._train.seconds or float(self._train.iterations)
        unit = "s" if self._train.seconds else "steps"
        with stop as requested, self._reporter.progress("train", total, unit) as self._bar:
            yield requested

    def add(self, results: Sequence[StepResult], at: At) -> None:
        """Take in the results of steps."""
        for result in results:
            self._loss = result.loss if self._loss is None else 0.9 * self._loss + 0.1 * result.loss
        if not self._told and at.fraction >= _PASSES_AFTER:
            self._told = True
            expected = self._before.tokens / at.fraction  # the fraction is that before the last step
            self._reporter.message(
                f"about {expected:,.0f} tokens will be trained on, {expected / self._train_tokens:.2g} passes "
                f"over the {self._train_tokens:,} train tokens"
            )
        self._before = at
        now = time.monotonic()
        if self._bar is not None and results and self._loss is not None and now - self._shown_at >= _SHOW_SECONDS:
            self._shown_at = now
            if at.elapsed - self._since.elapsed >= _RATE_SECONDS or not self._rate:
                self._rate = (at.tokens - self._since.tokens) / max(at.elapsed - self._since.elapsed, 1e-9)
                self._since = at
            step = results[-1].iteration + 1
            note = f"step {step}  loss {self._loss:.3f}  {self._rate:,.0f} tokens/s"
            self._bar.update(at.elapsed if self._train.seconds else step, note=note)
