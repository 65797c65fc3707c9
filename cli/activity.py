"""The work under way, shown from a command's first moment to its last: a bar on a terminal, lines in a file.

Tasks are nested, and the innermost is shown. The outermost, `working`, covers what no stage reports, such as imports.
The bar is redrawn by a thread of rich, the lines are printed by one of ours, so that a pause inside one long call is
not silent either.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

FIRST_SECONDS, LINE_SECONDS = 2.0, 30.0
"""Of silence in a file before the first line of a task, and between two lines of it."""
_DELAY = 0.3  # a command that ends sooner draws nothing


class Task:
    """A piece of work with its progress, in words."""

    def __init__(self, title: str, total: float | None = None, unit: str = "") -> None:
        self.title, self.total, self.unit, self.completed, self.note = title, total, unit, 0.0, ""
        self.told = False
        self._begun = time.monotonic()
        self._first: float | None = None

    def update(self, completed: float, total: float | None = None, note: str = "") -> None:
        """See `pgolf.progress.Progress`."""
        if self._first is None:
            self._first, self._begun = completed, time.monotonic()
        self.completed, self.note = completed, note or self.note
        self.total = self.total if total is None else total

    def done(self) -> str:
        """`109 s of 3,000 s`; only what is done where the whole is not known, nothing before there is any."""
        unit = f" {self.unit}" if self.unit else ""
        if self.total is None:
            return f"{self.completed:,.0f}{unit}" if self.completed else ""
        return f"{self.completed:,.0f}{unit} of {self.total:,.0f}{unit}"

    def left(self) -> str:
        """The time left, by the clock for work that ends by it, else by the pace since the first update."""
        if self.total is None or self._first is None:
            return ""
        seconds = self.total - self.completed
        if self.unit != "s":
            pace = (self.completed - self._first) / max(time.monotonic() - self._begun, 1e-9)
            if pace <= 0:
                return ""
            seconds /= pace
        minutes, rest = divmod(max(0, round(seconds)), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{rest:02} left" if hours else f"{minutes}:{rest:02} left"

    def words(self) -> str:
        return "  ".join(filter(None, (self.done(), self.note, self.left())))


class Activity:
    """The tasks of this process, and what shows the innermost of them."""

    def __init__(self, console: Callable[[], Console], plain: Callable[[str], str]) -> None:
        """console: where to, asked whenever something is shown. plain: escapes what a terminal would obey."""
        self._console, self._plain = console, plain
        self._tasks: list[Task] = []
        self._live: Live | None = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._begun = self._last_word = 0.0
        self._spinner = Spinner("line")

    @contextmanager
    def task(self, title: str, total: float | None = None, unit: str = "") -> Iterator[Task]:
        """Work that is shown until the block is left."""
        task, outermost = Task(title, total, unit), not self._tasks
        self._tasks.append(task)
        try:
            if outermost and os.environ.get("RANK", "0") == "0":
                self._start()
            yield task
        finally:
            self._tasks.remove(task)
            if outermost:
                self.end()

    def _start(self) -> None:
        self._begun = self._last_word = time.monotonic()
        if self._console().is_terminal:
            self._draw()
        else:
            self._over.clear()
            self._thread = threading.Thread(target=self._tell, name="activity", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """Show nothing more of the work under way: something else is written now, or the work has ended."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        if self._live is not None:
            self._live.stop()
        self._thread = self._live = None

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Take the bar off the terminal while something else is written or asked there."""
        shown, self._live = self._live, None
        if shown is not None:
            shown.stop()
        try:
            yield
        finally:
            self.heard()
            if shown is not None:
                self._draw()

    def heard(self) -> None:
        """Note that something was written: the silence begins anew."""
        self._last_word = time.monotonic()

    def _draw(self) -> None:
        self._live = Live(
            get_renderable=self.bar,
            console=self._console(),
            refresh_per_second=8,
            transient=True,
            redirect_stdout=False,
        )
        self._live.start()

    def bar(self) -> Table | Text:
        """The line of a terminal; empty at first."""
        if not self._tasks or time.monotonic() - self._begun < _DELAY:
            return Text("")
        task = self._tasks[-1]
        line = Table.grid(padding=(0, 1))
        for _ in range(4):
            line.add_column(no_wrap=True)
        bar = ProgressBar(task.total, task.completed, width=20, pulse=task.total is None)
        line.add_row(self._spinner, self._plain(task.title), bar, self._plain(task.words()))
        return line

    def _tell(self) -> None:
        while not self._over.wait(0.25):
            self.line()

    def line(self) -> None:
        """Print the line of a file when one is due."""
        task = next(iter(self._tasks[-1:]), None)
        silence = time.monotonic() - self._last_word
        if task is not None and silence >= (LINE_SECONDS if task.told else FIRST_SECONDS):
            task.told = True
            self.heard()
            words = "  ".join(filter(None, (task.title, task.words())))
            self._console().print(self._plain(words), soft_wrap=True)
            sys.stderr.flush()
