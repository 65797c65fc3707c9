"""`pgolf eval-ttt`: bits per byte of a model that learns from the text it has already scored."""

from typing import Annotated

import typer

from cli import numbers
from cli.common import Common, command
from cli.eval_sliding import Context, Documents, Mixture, Reset, TextField, assignments
from cli.launch import Nproc, launched

Method = Annotated[str | None, typer.Option("--method", help="sgd, lora, in-place or phased.")]
Seconds = Annotated[
    float | None,
    typer.Option("--seconds", parser=numbers.seconds, metavar="TIME", help="Time budget; 0: none."),
]
Tune = Annotated[bool, typer.Option("--tune", help="First choose rates on held-out train text.")]


def add_to(app: typer.Typer) -> None:
    @command(app, "eval-ttt", examples=("pgolf eval-ttt --method lora --name lora",))
    def eval_ttt(
        common: Common,
        documents: Documents = (),  # type: ignore[assignment]
        text_field: TextField = "text",
        method: Method = None,
        seconds: Seconds = None,
        tune: Tune = False,
        context: Context = None,
        reset: Reset = False,
        mixture: Mixture = False,
        nproc: Nproc = 1,
    ) -> None:
        """Score a model that learns from each chunk once it is scored."""
        if launched(nproc):
            return
        from pgolf.errors import PgolfError
        from pgolf.evaluate.ttt import methods
        from stages.eval_ttt import eval_ttt as run
        from stages.views import evaluation

        extra = [] if method is None else [f"ttt.method={method}"]
        extra += [] if seconds is None else [f"ttt.seconds={seconds}"]
        stage_context, source = common.prepare("eval-ttt", *assignments(context, reset, mixture), *extra)
        chosen = stage_context.config.ttt
        if context is not None and not methods.of(chosen).takes_context:
            fitting = " or ".join(name for name, row in methods.METHODS.items() if row.takes_context)
            raise PgolfError(f"--context applies to --method {fitting} only; leave it out with {chosen.method}")
        stage = run(stage_context, source, evaluation.Documents.of(documents, text_field), tune)
        evaluation.report(stage_context.reporter, stage)
        if stage_context.runtime.is_main:
            common.finish(stage)
        stage_context.runtime.shutdown()
