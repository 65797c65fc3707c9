"""`pgolf share`: a run's manifests and logs in one small file."""

from pathlib import Path
from typing import Annotated

import typer

from cli.common import Common, command

_EXAMPLES = ("pgolf share default --out default.lineage.json", "pgolf inspect --from default.lineage.json")


def add_to(app: typer.Typer) -> None:
    @command(app, "share", ("artifacts", "json", "debug"), _EXAMPLES)
    def share(
        common: Common,
        run: Annotated[str, typer.Argument(metavar="RUN", help="The run to share.")] = "default",
        out: Annotated[Path | None, typer.Option(metavar="FILE", help="Default: RUN.lineage.json.")] = None,
    ) -> None:
        """Write a run's manifests and logs, without tensors, into one file.

        inspect --from FILE, compare FILE ... and report FILE read it on any machine.
        """
        from cli.screen import say_json
        from pgolf.store import lineage_file, runs

        place = runs.find(common.artifacts, run)
        target = out or Path(place.resolve().name + lineage_file.SUFFIX)
        lineage_file.write(place, target)
        common.screen.result(f"{target}: {target.stat().st_size:,} bytes")
        if common.json:
            say_json({"path": str(target), "bytes": target.stat().st_size})
