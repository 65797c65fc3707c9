"""`pgolf eval`: eval-sliding, then eval-ttt when asked."""

from typing import Annotated

import typer

from cli.common import Common, command
from cli.eval_sliding import Context, Documents, Mixture, Reset, TextField, assignments
from cli.eval_ttt import Seconds
from cli.launch import Nproc, launched


def add_to(app: typer.Typer) -> None:
    @command(app, "eval", examples=("pgolf eval --ttt --documents val.jsonl --name other",))
    def evaluate(
        common: Common,
        documents: Documents = (),  # type: ignore[assignment]
        text_field: TextField = "text",
        ttt: Annotated[bool, typer.Option("--ttt", help="Then with test-time training too.")] = False,
        context: Context = None,
        reset: Reset = False,
        mixture: Mixture = False,
        seconds: Seconds = None,
        nproc: Nproc = 1,
    ) -> None:
        """Score a model with sliding windows; --ttt: then with test-time training."""
        if launched(nproc):
            return
        from stages.eval_sliding import eval_sliding
        from stages.eval_ttt import eval_ttt
        from stages.views import evaluation

        extra = [] if seconds is None else [f"ttt.seconds={seconds}"]
        stages, source = common.prepare("eval-sliding", *assignments(context, reset, mixture), *extra)
        text = evaluation.Documents.of(documents, text_field)
        stage = eval_sliding(stages, source, text)
        evaluation.report(stages.reporter, stage)
        if ttt:
            stage = eval_ttt(stages.adopt(stages.own("eval-ttt"), source), source, text)
            evaluation.report(stages.reporter, stage)
        if stages.runtime.is_main:
            common.finish(stage)
        stages.runtime.shutdown()
