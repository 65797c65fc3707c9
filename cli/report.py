"""`pgolf report`: one self-contained HTML page of a run."""

from pathlib import Path
from typing import Annotated

import typer

from cli.common import Common, command


def add_to(app: typer.Typer) -> None:
    @command(app, "report")
    def report(
        common: Common,
        run_name: Annotated[
            str | None, typer.Argument(metavar="[RUN]", help="Run to report on; default: --run.")
        ] = None,
    ) -> None:
        """Write a page with a run's lineage, loss curve, scores, bytes, gain of learning, and audit. Opens anywhere."""
        import dataclasses

        from stages.reports.html import html_report

        if run_name is not None:
            folder = Path(run_name)
            named = folder if folder.is_dir() else common.artifacts / run_name
            common = dataclasses.replace(common, artifacts=named.parent, run=named.name)
        common.finish(html_report(common.context().adopt()))
