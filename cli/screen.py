"""Progress bars, messages and tables on stderr, through rich."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from pgolf.progress import Progress as StageProgress

console = Console(stderr=True, highlight=False)


LINE_SECONDS = 30.0
"""Between two lines of progress where there is no terminal to draw a bar on."""


class _Task:
    """Where a piece of work stands, in words."""

    def __init__(self, title: str, total: float | None, unit: str) -> None:
        self.title, self.total, self.unit, self.completed, self.note = title, total, unit, 0.0, ""
        self._begun = time.monotonic()
        self._first: float | None = None

    def update(self, completed: float, total: float | None, note: str) -> None:
        if self._first is None:
            self._first, self._begun = completed, time.monotonic()
        self.completed, self.note = completed, note or self.note
        self.total = self.total if total is None else total

    def done(self) -> str:
        """`109 s of 3,000 s`; only what is done where the whole is not known."""
        unit = f" {self.unit}" if self.unit else ""
        of = "" if self.total is None else f" of {self.total:,.0f}{unit}"
        return f"{self.completed:,.0f}{unit}{of}"

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


class _Bar:
    """Draws on a terminal."""

    def __init__(self, progress: Progress, task: TaskID, state: _Task) -> None:
        self._progress, self._task, self._state = progress, task, state

    def update(self, completed: float, total: float | None = None, note: str = "") -> None:
        state = self._state
        state.update(completed, total, note)
        note, left = escape(state.note), state.left()
        self._progress.update(self._task, completed=completed, total=total, note=note, done=state.done(), left=left)


class _Lines:
    """Prints a line now and then, into a file or a pipe."""

    def __init__(self, state: _Task) -> None:
        self._state, self._printed = state, time.monotonic()

    def update(self, completed: float, total: float | None = None, note: str = "") -> None:
        state = self._state
        state.update(completed, total, note)
        if time.monotonic() - self._printed >= LINE_SECONDS:
            self._printed = time.monotonic()
            words = (f"{state.title} {state.done()}", state.note, state.left())
            console.print(escape("  ".join(filter(None, words))), soft_wrap=True)


class Screen:
    """The Reporter that draws on a terminal, and prints lines where there is none."""

    @contextmanager
    def progress(self, title: str, total: float | None = None, unit: str = "") -> Iterator[StageProgress]:
        state = _Task(title, total, unit)
        if not console.is_terminal:
            yield _Lines(state)
            return
        columns = (
            TextColumn("{task.description:<14}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[done]}"),
            TextColumn("{task.fields[note]}"),
            TextColumn("{task.fields[left]}"),
        )
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task(title, total=total, note="", done=state.done(), left="")
            yield _Bar(progress, task, state)

    def message(self, text: str) -> None:
        console.print(escape(text), soft_wrap=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        table = Table(title=title, title_justify="left", title_style="bold")
        for index, column in enumerate(columns):
            # Folded, never cut: a number without its last digits is worse than one on two lines.
            table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*(escape(cell) for cell in row))
        console.print(table)


def say_error(text: str) -> None:
    console.print(f"[red]pgolf:[/red] {escape(text)}", soft_wrap=True)
