"""Progress-reporting interface; the CLI renders it, `Silent` discards it."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Progress(Protocol):
    """One piece of work under way. `total` is in whatever unit the work is counted in (tokens, windows, tensors)."""

    def update(self, completed: float, total: float | None = None, note: str = "") -> None:
        """Set the progress; `note` is a short text next to the bar, for example `loss 2.13  41,000 tokens/s`."""


class Reporter(Protocol):
    def progress(self, title: str, total: float | None = None, unit: str = "") -> AbstractContextManager[Progress]:
        """A context manager that yields a Progress; shown from the start, removed at the end. unit: of `total`, shown
        behind the numbers; `s` means that the work ends by the clock."""

    def message(self, text: str, detail: bool = False) -> None:
        """One line about the work, which stays on the screen. detail: for those who ask for everything."""

    def result(self, text: str) -> None:
        """Report a result in one line."""

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], detail: bool = False) -> None:
        """A table of results. detail: for those who ask for every table."""


class _NoProgress:
    def update(self, completed: float, total: float | None = None, note: str = "") -> None:
        pass


class Silent:
    """Says nothing."""

    @contextmanager
    def progress(self, title: str, total: float | None = None, unit: str = "") -> Iterator[Progress]:
        yield _NoProgress()

    def message(self, text: str, detail: bool = False) -> None:
        pass

    def result(self, text: str) -> None:
        pass

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], detail: bool = False) -> None:
        pass
