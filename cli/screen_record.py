"""`pgolf screen`: check a record of the challenge that pgolf did not make."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cli.common import guarded


def add_to(app: typer.Typer) -> None:
    @app.command("screen")
    def screen(
        folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of one record: submission.json, logs.")],
        every: Annotated[bool, typer.Option("--all", help="Show the checks that agree as well.")] = False,
        as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout and nothing else.")] = False,
        debug: Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")] = False,
    ) -> None:
        """Check a record's claims against its logs, its files and the challenge's constants, without running it.

        Each check agrees, contradicts or cannot tell. Exit code 1 when one contradicts.
        """

        def work() -> None:
            from cli.screen import Screen
            from pgolf.errors import CheckFailed
            from pgolf.screen.checks import screen_folder
            from pgolf.screen.claims import AGREES, CANNOT_TELL, CONTRADICTS

            checks = screen_folder(folder)
            verdicts = (CONTRADICTS, CANNOT_TELL, AGREES)
            counts = {verdict: sum(check.verdict == verdict for check in checks) for verdict in verdicts}
            if as_json:
                print(json.dumps({"counts": counts, "checks": [asdict(check) for check in checks]}, ensure_ascii=False))
            shown = sorted(
                (check for check in checks if every or check.verdict != AGREES),
                key=lambda check: verdicts.index(check.verdict),
            )
            rows = [(c.name, c.verdict, c.finding, ", ".join(c.evidence)) for c in shown]
            if rows:
                Screen().table(f"screen of {folder.resolve().name}", ("check", "verdict", "finding", "where"), rows)
            summary = (
                f"{counts[AGREES]} checks agree, {counts[CONTRADICTS]} contradict, {counts[CANNOT_TELL]} cannot tell"
            )
            if counts[CONTRADICTS]:
                raise CheckFailed(f"{folder}: {summary}")
            Screen().message(f"{folder}: {summary}")

        guarded(work, debug=debug, as_json=as_json)
