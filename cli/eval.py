"""`pgolf eval`: eval-sliding, then eval-ttt when asked."""

from typing import Annotated

import typer

from cli.common import Common, command
from cli.eval_sliding import Documents


def add_to(app: typer.Typer) -> None:
    @command(app, "eval")
    def evaluate(
        common: Common,
        documents: Documents = (),  # type: ignore[assignment]
        ttt: Annotated[bool, typer.Option("--ttt", help="Then score with test-time training too.")] = False,
    ) -> None:
        """Score a model with sliding windows; with --ttt, with test-time training after that."""
        from stages import scoring
        from stages.eval_sliding import eval_sliding
        from stages.eval_ttt import eval_ttt

        context = common.context()
        source = context.input(common.source, *scoring.MODEL_STAGES)
        stage = eval_sliding(context, source, documents)
        common.finish(eval_ttt(context, source, documents) if ttt else stage)
