"""`pgolf runs`: every run and variant in one table."""

import csv
import dataclasses
import io
from typing import Annotated, Any

import typer

from cli.common import Common, command

_EXAMPLES = ("pgolf runs --sort bits_per_byte", "pgolf runs --csv")
_SHOWN = {
    "quantizer": ("method", "{}"),
    "tokens": ("tokens", "{:,}"),
    "bytes": ("bytes", "{:,}"),
    "bits_per_byte": ("BPB", "{:.4f}"),
    "ttt_bits_per_byte": ("TTT", "{:.4f}"),
    "proved": ("proved", "{:.4f}"),
}


def add_to(app: typer.Typer) -> None:
    @command(app, "runs", ("artifacts", "json", "debug"), _EXAMPLES)
    def runs(
        common: Common,
        sort: Annotated[
            str, typer.Option(metavar="COLUMN", help="run, date, preset, tokens, bytes, bits_per_byte, ...")
        ] = "date",
        reverse: Annotated[bool, typer.Option("--reverse", help="The largest value first.")] = False,
        as_csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values, with a line of names.")] = False,
    ) -> None:
        """List every run and variant: date, preset, size, bits per byte."""
        from cli.screen import say_json
        from stages.reports import runs_table

        rows = runs_table.rows(common.artifacts, sort, lambda fault: common.screen.message(f"left out: {fault}"))
        rows = rows[::-1] if reverse else rows
        if common.json:
            say_json({"runs": [dataclasses.asdict(row) for row in rows]})
        elif as_csv:
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(runs_table.COLUMNS)
            writer.writerows(dataclasses.astuple(row) for row in rows)
            common.screen.result(text.getvalue().rstrip("\n"))
        else:
            shown = [column for column in runs_table.COLUMNS if any(getattr(row, column) is not None for row in rows)]
            heads = [_SHOWN.get(column, (column, ""))[0] for column in shown]
            common.screen.table("", heads, [[_cell(column, getattr(row, column)) for column in shown] for row in rows])


def _cell(column: str, value: Any) -> str:
    if value is None:
        return "-"
    if column == "date":
        return str(value)[5:10]  # all of it is in --json and --csv
    return _SHOWN.get(column, ("", "{}"))[1].format(value)
