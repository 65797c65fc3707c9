"""`pgolf eval-sliding`: bits per byte with sliding windows."""

from pathlib import Path
from typing import Annotated

import typer

from cli.common import Common, command

Documents = Annotated[
    list[Path], typer.Option("--documents", metavar="FILE...", help="Score this text instead of val.")
]


def add_to(app: typer.Typer) -> None:
    @command(app, "eval-sliding")
    def eval_sliding(common: Common, documents: Documents = ()) -> None:  # type: ignore[assignment]
        """Score a model in bits per byte with sliding windows; every token but the first exactly once."""
        from stages import scoring
        from stages.eval_sliding import eval_sliding as run

        context = common.context()
        common.finish(run(context, context.input(common.source, *scoring.MODEL_STAGES), documents))
