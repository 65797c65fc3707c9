"""`metrics.jsonl` and `train.log`, written while training goes on.

`metrics.jsonl`: one JSON object per line, means over `train.log_every` steps. `train.log`: see `train_log`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from pgolf.config import Config
from pgolf.training.fit import At
from pgolf.training.nonfinite import StepResult
from pgolf.training.train_log import hyperparameters, steps


class MetricsLog:
    """Collects the steps' results and writes a line per `log_every` of them; nothing is written before the first.

    path: of `metrics.jsonl`; text: of `train.log`. iteration, at: where this attempt begins. A resumed run drops the
    lines of `metrics.jsonl` that the killed one wrote after its last checkpoint, since those steps are repeated; in
    `train.log` they stay above the line that says from where it continues.
    """

    def __init__(self, path: Path, text: Path, config: Config, is_main: bool, iteration: int, at: At) -> None:
        self._path, self._text, self._config, self._is_main, self._iteration = path, text, config, is_main, iteration
        self._pending: list[StepResult] = []
        self._notes = [f"continuing at step {iteration}"] if iteration else [*hyperparameters(config)]
        self._file: TextIO | None = None
        self._log: TextIO | None = None
        self._board: Any = None
        self._from, self._at = at, at
        kept = _lines(path, iteration)
        self.last_loss: float | None = kept[-1]["loss"] if kept else None

    def __enter__(self) -> "MetricsLog":
        if self._is_main and self._path.is_file():
            self._open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._flush()  # the last steps, however few
        for file in (self._file, self._log):
            if file is not None:
                file.close()
        if self._board is not None:
            self._board.close()

    def add(self, results: Sequence[StepResult], at: At) -> None:
        """Take in the results of steps; a line is written when there are enough."""
        self._pending += results
        self._at = at
        for line in steps(results, at, self._config):
            self.note(line)
        if len(self._pending) >= self._config.train.log_every:
            self._flush()

    def note(self, line: str) -> None:
        """A line of `train.log`; kept until the first step is known."""
        self._notes.append(line)
        if self._is_main and (self._pending or self._log is not None):
            if self._log is None:
                self._text.parent.mkdir(parents=True, exist_ok=True)
                self._log = self._text.open("a" if self._iteration else "w", encoding="utf-8", buffering=1)
            self._log.write("".join(f"{text}\n" for text in self._notes))
            self._notes.clear()

    def _flush(self) -> None:
        if not self._pending:
            return
        at, last = self._at, self._pending[-1]
        self.last_loss = sum(result.loss for result in self._pending) / len(self._pending)
        rate = (at.tokens - self._from.tokens) / max(at.elapsed - self._from.elapsed, 1e-9)
        line = {
            "iteration": last.iteration + 1,
            "tokens": at.tokens,
            "seconds": round(at.elapsed, 3),
            "loss": self.last_loss,
            "grad_norm": last.grad_norm,
            "learning_rate": at.learning_rate,
            "tokens_per_second": round(rate, 1),
        }
        self._from, self._pending = at, []
        if not self._is_main:
            return
        if self._file is None:
            self._open()
        assert self._file is not None
        self._file.write(json.dumps(line) + "\n")
        if self._board is not None:
            for name in ("loss", "grad_norm", "learning_rate", "tokens_per_second"):
                self._board.add_scalar(name, line[name], line["iteration"])
            self._board.flush()  # as the line: a kill loses nothing from before the last checkpoint

    def _open(self) -> None:
        kept = _lines(self._path, self._iteration)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text("".join(json.dumps(line) + "\n" for line in kept), "utf-8")
        self._file = self._path.open("a", encoding="utf-8", buffering=1)  # a line reaches the disk when written
        if self._config.train.tensorboard:
            self._board = _tensorboard(self._path.parent / "tensorboard", self._iteration)


def _lines(path: Path, iteration: int) -> list[dict[str, Any]]:
    """Whole lines of an earlier attempt up to an iteration; the last one may have been cut by the kill."""
    found = []
    for text in path.read_text("utf-8").splitlines() if path.is_file() else []:
        try:
            line = json.loads(text)
        except ValueError:
            break
        if line["iteration"] <= iteration:
            found.append(line)
    return found


def _tensorboard(folder: Path, iteration: int) -> Any:
    """A writer of event files; on resume TensorBoard drops the events after `iteration`."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=iteration + 1 if iteration else None)
