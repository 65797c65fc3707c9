"""`metrics.jsonl`, written while training goes on: one JSON object per line, means over `train.log_every` steps."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from pgolf.config import TrainConfig
from pgolf.training.nonfinite import StepResult


class MetricsLog:
    """Collects the steps' results and writes a line per `log_every` of them. A resumed run drops the lines that the
    killed one wrote after its last checkpoint, since those steps are run again."""

    def __init__(self, path: Path, iteration: int, tokens: int, config: TrainConfig, is_main: bool) -> None:
        self._path, self._every, self._is_main = path, config.log_every, is_main
        self._pending: list[StepResult] = []
        self._file: TextIO | None = None
        self._board: Any = None
        self._clock, self._tokens = time.perf_counter(), tokens
        self.last_loss: float | None = None
        self.note = ""
        if not is_main:
            return
        kept = [line for line in _lines(path) if line["iteration"] <= iteration]
        if kept:
            self.last_loss = kept[-1]["loss"]
        path.write_text("".join(json.dumps(line) + "\n" for line in kept), "utf-8")
        if config.tensorboard:
            self._board = _tensorboard(path.parent / "tensorboard", iteration)

    def __enter__(self) -> "MetricsLog":
        if self._is_main:
            self._file = self._path.open("a", encoding="utf-8", buffering=1)  # a line reaches the disk when written
        self._clock = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()

    def add(self, results: Sequence[StepResult], elapsed: float, tokens: int) -> bool:
        """Take in the results of steps; `tokens` trained on so far. Returns whether a line was written."""
        self._pending += results
        return len(self._pending) >= self._every and self.flush(elapsed, tokens)

    def flush(self, elapsed: float, tokens: int) -> bool:
        """Write a line for the steps since the last one, however few. Returns whether there were any."""
        if not self._pending:
            return False
        loss = sum(result.loss for result in self._pending) / len(self._pending)
        now = time.perf_counter()
        rate = (tokens - self._tokens) / max(now - self._clock, 1e-9)
        line = {
            "iteration": self._pending[-1].iteration + 1,
            "tokens": tokens,
            "seconds": round(elapsed, 3),
            "loss": loss,
            "grad_norm": self._pending[-1].grad_norm,
            "tokens_per_second": round(rate, 1),
        }
        self._clock, self._tokens = now, tokens
        self._pending = []
        self.last_loss = loss
        self.note = f"step {line['iteration']}  loss {loss:.3f}  {rate:,.0f} tokens/s"
        if self._file is not None:
            self._file.write(json.dumps(line) + "\n")
        if self._board is not None:
            for name in ("loss", "grad_norm", "tokens_per_second"):
                self._board.add_scalar(name, line[name], line["iteration"])
            self._board.flush()  # as the line: a kill loses nothing from before the last checkpoint
        return True


def _lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines of an earlier attempt; the last one may have been cut by the kill."""
    found = []
    for text in path.read_text("utf-8").splitlines() if path.is_file() else []:
        try:
            found.append(json.loads(text))
        except ValueError:
            break
    return found


def _tensorboard(folder: Path, iteration: int) -> Any:
    """A writer of event files; in a resumed run TensorBoard forgets what the killed one wrote after `iteration`."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=iteration + 1 if iteration else None)
