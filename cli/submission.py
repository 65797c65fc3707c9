"""`pgolf submission`: packaged runs as the challenge's records folder."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cli.common import Common, command

_EXAMPLES = ("pgolf submission default --name 'Small and fast' --author Me --github-id me",)


def add_to(app: typer.Typer) -> None:
    @command(app, "submission", ("artifacts", "json", "debug"), _EXAMPLES)
    def submission(
        common: Common,
        runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Packaged runs, one per seed.")],
        name: Annotated[str, typer.Option(help="Title of the submission.")],
        author: Annotated[str, typer.Option(help="Who submits.")],
        github_id: Annotated[str, typer.Option(help="GitHub name of who submits.")],
        blurb: Annotated[str, typer.Option(help="One or two sentences on the new idea.")] = "",
        track: Annotated[str, typer.Option(help="10min_16mb or non_record_16mb.")] = "non_record_16mb",
        variant: Annotated[
            str | None, typer.Option(help="Submit package@VARIANT of each run, not its plain package.")
        ] = None,
        against: Annotated[
            str | None, typer.Option(help="The record to beat, for the significance statement: runs, comma-separated.")
        ] = None,
        out: Annotated[Path, typer.Option(help="Destination of the folder.")] = Path("records"),
    ) -> None:
        """Write packaged runs as a folder for the challenge's records."""
        from cli.screen import say_json
        from stages.reports import compare as comparing
        from stages.reports import submission as stage

        seeds = [stage.read_seed(common.artifacts / run, variant) for run in runs]
        comparison = None
        if against is not None:
            reference = comparing.find(against, common.artifacts, None)
            comparison = comparing.compare(common.screen, reference, [seed.best for seed in seeds])
        who = stage.Author(author, github_id, name, blurb)
        folder = stage.submission(out, seeds, who, track, comparison)
        for warning in stage.warnings(seeds, track):
            common.screen.message(f"warning: {warning}")
        common.screen.result(f"written: {folder}")
        if common.json:
            entry = json.loads((folder / "submission.json").read_text("utf-8"))
            say_json({"path": str(folder), "submission": entry})
