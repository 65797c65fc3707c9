"""`pgolf compare`: whether one side's scores beat another's, and how sure that is."""

from pathlib import Path
from typing import Annotated

import typer

from cli.common import guarded

_SIDE = "stage directories or runs, comma-separated, * allowed"


def add_to(app: typer.Typer) -> None:
    @app.command("compare")
    def compare(
        a: Annotated[str, typer.Argument(metavar="A", help=f"What is to be beaten: {_SIDE}.")],
        b: Annotated[str, typer.Argument(metavar="B", help=f"What should be better: {_SIDE}.")],
        stage: Annotated[
            str | None, typer.Option(help="Which evaluation of a run, for example eval-sliding@int5.")
        ] = None,
        artifacts: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("artifacts"),
        as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout and nothing else.")] = False,
        debug: Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")] = False,
    ) -> None:
        """Test whether B beats A: several seeds each (Welch's t-test), or one pair document by document (bootstrap)."""

        def work() -> None:
            from cli.screen import Screen, say_json
            from stages.reports import compare as comparing

            found = [comparing.find(side, artifacts, stage) for side in (a, b)]
            result = comparing.compare(Screen(), *found)
            if as_json:
                say_json(result.to_dict())

        guarded(work, debug=debug, as_json=as_json)
