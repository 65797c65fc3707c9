"""`pgolf eval-ttt`: bits per byte of a model that learns from the text it has already scored."""

import typer

from cli.common import Common, command
from cli.eval_sliding import Documents


def add_to(app: typer.Typer) -> None:
    @command(app, "eval-ttt")
    def eval_ttt(common: Common, documents: Documents = ()) -> None:  # type: ignore[assignment]
        """Score a model that learns from every chunk of text once it is scored, never before."""
        from stages import scoring
        from stages.eval_ttt import eval_ttt as run

        context = common.context()
        common.finish(run(context, context.input(common.source, *scoring.MODEL_STAGES), documents))
