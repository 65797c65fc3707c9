"""`pgolf compare`: whether one side's scores beat another's, and how sure that is."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.common import Common, command

if TYPE_CHECKING:
    from pgolf.store.stage_directory import Stage

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
            unpacked = {
                file: held.enter_context(lineage_file.opened(Path(file))) for file in {a, b} if Path(file).is_file()
            }
            found = [comparing.find(str(unpacked.get(side, side)), common.artifacts, stage) for side in (a, b)]

            def named(scores: "Stage") -> str:
                files = (file for file, folder in unpacked.items() if folder in scores.path.parents)
                return next((f"{file}, {scores.label}" for file in files), str(scores.path))

            result = comparing.compare(common.screen, found[0], found[1], named)
            readings = comparing.compressors(common.screen, found[1][0])
        if common.json:
            scores = {reading.key: reading.bits_per_byte for reading in readings}
            say_json(result.to_dict() | {"compressors": scores})
