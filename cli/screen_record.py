"""`pgolf screen`: check a record of the challenge that pgolf did not make."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cli.common import Common, command


def add_to(app: typer.Typer) -> None:
    @command(app, "screen", ("json", "debug"), ("pgolf screen records/2026-03-17_NaiveBaseline",))
    def screen(
        common: Common,
        folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of one record: submission.json, logs.")],
        every: Annotated[bool, typer.Option("--all", help="Show the checks that agree as well.")] = False,
    ) -> None:
        """Check a record's claims against its logs and files, without running it.

        Each check agrees, contradicts or cannot tell. Exit code 1 when one contradicts.
        """
        from cli.screen import say_json
        from pgolf.errors import CheckFailed
        from pgolf.screen.checks import screen_folder
        from pgolf.screen.claims import AGREES, CANNOT_TELL, CONTRADICTS

        checks = screen_folder(folder)
        verdicts = (CONTRADICTS, CANNOT_TELL, AGREES)
        counts = {verdict: sum(check.verdict == verdict for check in checks) for verdict in verdicts}
        if common.json:
            say_json({"counts": counts, "checks": [asdict(check) for check in checks]})
        shown = sorted(
            (check for check in checks if every or check.verdict != AGREES),
            key=lambda check: verdicts.index(check.verdict),
        )
        rows = [(c.name, c.verdict, c.finding, ", ".join(c.evidence)) for c in shown]
        if rows:
            common.screen.table(f"screen of {folder.resolve().name}", ("check", "verdict", "finding", "where"), rows)
        summary = f"{counts[AGREES]} checks agree, {counts[CONTRADICTS]} contradict, {counts[CANNOT_TELL]} cannot tell"
        if counts[CONTRADICTS]:
            raise CheckFailed(f"{folder}: {summary}")
        common.screen.result(f"{folder}: {summary}")
