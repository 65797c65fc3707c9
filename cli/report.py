"""`pgolf report`: one self-contained HTML page of a run."""

from pathlib import Path
from typing import Annotated

import typer

from cli.common import Common, command

_USES = ("artifacts", "run", "force", "device", "threads", "json", "debug")


def add_to(app: typer.Typer) -> None:
    @command(app, "report", _USES, ("pgolf report",))
    def report(
        common: Common,
        place: Annotated[
            str | None,
            typer.Argument(metavar="RUN", help="A run, a package or lineage file of any place; default: --run."),
        ] = None,
    ) -> None:
        """Write one page about a run: scores, loss, bytes, audit, text, lineage.

        The page of a run is a stage in it; that of a package or lineage file is written beside it.
        """
        import dataclasses

        from cli.screen import say_json
        from pgolf.store import lineage_file, runs, stage_directory
        from stages.reports import html

        if place is None:
            common.finish(html.html_report(common.context().adopt()))
            return
        path = Path(place)
        if path.is_file():
            with lineage_file.opened(path) as folder:
                page = html.page(folder.name, runs.stages_of(folder), path.with_suffix(".html"))
        elif stage_directory.exists(path):
            stage = stage_directory.open_stage(path)
            page = html.page(path.resolve().name, [stage], path.resolve().with_suffix(".html"))
        else:
            found = runs.find(common.artifacts, place)
            common = dataclasses.replace(common, artifacts=found.parent, run=found.name)
            common.finish(html.html_report(common.context().adopt()))
            return
        common.screen.result(str(page))
        if common.json:
            say_json({"path": str(page)})
