"""`pgolf compare`: whether one side's scores beat another's, and how sure that is."""

from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Annotated

import typer

from cli.common import Common, command

_SIDE = "stage directories, runs or a lineage file; comma-separated, * allowed"

_EXAMPLES = ("pgolf compare artifacts/default/eval-sliding artifacts/default/eval-ttt",)


def add_to(app: typer.Typer) -> None:
    @command(app, "compare", ("artifacts", "json", "verbose", "debug"), _EXAMPLES)
    def compare(
        common: Common,
        a: Annotated[str, typer.Argument(metavar="A", help=f"The baseline: {_SIDE}.")],
        b: Annotated[str, typer.Argument(metavar="B", help=f"What should be better: {_SIDE}.")],
        stage: Annotated[
            str | None, typer.Option(help="Evaluation stage of each run, for example eval-sliding@int5.")
        ] = None,
    ) -> None:
        """Test whether B beats A: several seeds each (Welch's t-test), or one pair document by document (bootstrap)."""
        from cli.screen import say_json
        from pgolf.store import lineage_file
        from stages.reports import compare as comparing

        with ExitStack() as held:
            files = [lineage_file.opened(Path(side)) if Path(side).is_file() else nullcontext(side) for side in (a, b)]
            sides = [str(held.enter_context(file)) for file in files]
            found = [comparing.find(side, common.artifacts, stage) for side in sides]
            result = comparing.compare(common.screen, *found)
            readings = comparing.compressors(common.screen, found[1][0])
        if common.json:
            scores = {reading.key: reading.bits_per_byte for reading in readings}
            say_json(result.to_dict() | {"compressors": scores})
