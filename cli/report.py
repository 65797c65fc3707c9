"""`pgolf report`: one self-contained HTML page of a run."""

from pathlib import Path
from typing import Annotated

import typer

from cli.common import Common, command


def add_to(app: typer.Typer) -> None:
    @command(app, "report", examples=("pgolf report",))
    def report(
        common: Common,
        run_name: Annotated[
            str | None, typer.Argument(metavar="RUN", help="Run or lineage file; default: --run.")
        ] = None,
    ) -> None:
        """Write a page with a run's lineage, loss curve, scores, bytes, gain of learning, and audit. Opens anywhere."""
        import dataclasses

        from cli.screen import say_json
        from pgolf.store import lineage_file, runs
        from stages.reports.html import html_report, render

        if run_name is not None and Path(run_name).is_file():
            page = Path(run_name).with_suffix(".html")
            with lineage_file.opened(Path(run_name)) as folder:
                text = render(folder.name, runs.stages_of(folder))
            lineage_file.write_new(page, text, "move it away first")
            common.screen.result(str(page))
            if common.json:
                say_json({"path": str(page)})
            return

        if run_name is not None:
            folder = Path(run_name)
            named = folder if folder.is_dir() else common.artifacts / run_name
            common = dataclasses.replace(common, artifacts=named.parent, run=named.name)
        common.finish(html_report(common.context().adopt()))
