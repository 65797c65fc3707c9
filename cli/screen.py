"""Results (tables, lines, JSON) on stdout; progress bars, messages and errors on stderr. Drawn by rich.

Every text is shown as it is: names of files, runs and models may hold brackets, colons or control characters, which
rich or the terminal would act on. Markup is off throughout, and what a terminal obeys is shown as an escape (`plain`).
"""

import json
import os
import re
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli.activity import Activity, Task
from pgolf.errors import PgolfError

console = Console(stderr=True, highlight=False, markup=False, emoji=False)
results = Console(highlight=False, markup=False, emoji=False)
for _console in (console, results):
    if _console.width < 20:  # COLUMNS=0 makes rich print nothing
        _console.width = 80
_NUMBER = re.compile(r"[-+(]*[\d.,]+\D{0,4}|-?")  # a column of such cells is aligned to the right
_SHORT = 16  # characters of a cell, a number as a rule, that is never broken over two lines
# Control characters but for the line end, marks that reverse the direction of text, and halves of surrogate pairs.
_OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: str) -> str:
    """The text with everything that a terminal would obey written as an escape such as `\\x1b`."""
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


activity = Activity(lambda: console, plain)


class Screen:
    """The Reporter that draws on a terminal, and prints lines where there is none."""

    def __init__(self, as_json: bool = False, verbose: bool = False) -> None:
        """as_json: stdout belongs to the JSON object, so results go to stderr. verbose: show tables of details."""
        self._as_json, self._verbose = as_json, verbose

    def progress(self, title: str, total: float | None = None, unit: str = "") -> AbstractContextManager[Task]:
        return activity.task(title, total, unit)

    def message(self, text: str, detail: bool = False) -> None:
        if self._verbose or not detail:
            console.print(plain(text), soft_wrap=True)
            activity.heard()

    def result(self, text: str) -> None:
        if self._as_json:
            self.message(text)
        else:
            write(plain(text) + "\n")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], detail: bool = False) -> None:
        if detail and not self._verbose:
            return
        if self._as_json:
            _print_table(console, title, columns, rows)
            return
        with results.capture() as drawn:
            _print_table(results, title, columns, rows)
        write(drawn.get())


def _print_table(where: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Long texts are folded, short cells never: half a number is worse than a line that is too long. Where the frame
    does not fit, there is none."""
    shown = [[plain(cell) for cell in row] for row in rows]
    table, widths = Table(), []
    for index, column in enumerate(columns):
        cells = [row[index] for row in shown]
        longest = max(map(len, cells), default=0)
        short = longest <= _SHORT and (index > 0 or len(columns) == 1)
        number = index > 0 and all(_NUMBER.fullmatch(cell) for cell in cells)
        table.add_column(column, justify="right" if number else "left", overflow="fold", no_wrap=short)
        longest = max(longest, len(column))
        widths.append(longest if short else min(longest, _SHORT))
    for row in shown:
        table.add_row(*row)
    if sum(widths) + 3 * len(widths) + 1 > where.width:
        table.box, table.padding = None, (0, 1, 0, 0)
        if sum(widths) + len(widths) > where.width:
            table.width = sum(widths) + len(widths)  # the terminal breaks the lines, or scrolls
    if title:
        where.print(Text(plain(title), style="bold"), soft_wrap=True)
    where.print(table, crop=False)


def write(text: str) -> None:
    """Put a result on stdout; characters that its encoding lacks become escapes.

    Raises PgolfError when it cannot be written, and BrokenPipeError when the reader has gone (`| head`).
    """
    if sys.stdout is None:
        raise PgolfError("stdout is closed; send it somewhere, such as > results.txt")
    try:
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        with activity.hidden():
            sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
            sys.stdout.flush()
    except OSError as error:
        with suppress(OSError, ValueError):  # or Python tries once more to write what is left, at the very end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise
        raise PgolfError(f"cannot write to stdout: {error.strerror or error}") from error


def say_error(text: str) -> None:
    with suppress(OSError, ValueError):  # stderr is full or closed; the exit code still tells
        console.print(Text.assemble(("pgolf:", "red"), " ", plain(text)), soft_wrap=True)


def say_json(value: Any) -> None:
    """One JSON object on stdout, in ASCII; raises what `_write` raises."""
    write(json.dumps(value) + "\n")
