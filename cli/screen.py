"""Progress bars, messages and tables on stderr, through rich."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from pgolf.progress import Progress as StageProgress

console = Console(stderr=True, highlight=False)


class _Bar:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def update(self, completed: float, total: float | None = None, note: str = "") -> None:
        self._progress.update(self._task, completed=completed, total=total, note=escape(note))


class Screen:
    """The Reporter that draws on a terminal."""

    @contextmanager
    def progress(self, title: str, total: float | None = None) -> Iterator[StageProgress]:
        columns = (
            TextColumn("{task.description:<14}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(compact=True),
        )
        with Progress(*columns, console=console, transient=True) as progress:
            yield _Bar(progress, progress.add_task(title, total=total, note=""))

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
