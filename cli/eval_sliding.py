"""`pgolf eval-sliding`: bits per byte with sliding windows."""

from typing import Annotated

import typer

from cli.common import Common, command
from cli.launch import Nproc, launched

Documents = Annotated[
    list[str],
    typer.Option(
        "--documents",
        metavar="FILE...",
        help="Score this text, not val: all that tokenize takes.",
    ),
]
TextField = Annotated[str, typer.Option("--text-field", help="Field of --documents that holds the text.")]
Context = Annotated[str | None, typer.Option("--context", help="windowed, or banded (one pass).")]
Reset = Annotated[bool, typer.Option("--reset-at-documents", help="Contexts begin at the document.")]
Mixture = Annotated[bool, typer.Option("--mixture", help="Also mix in statistics of scored tokens, apart.")]


def assignments(context: str | None, reset: bool, mixture: bool) -> list[str]:
    """The settings of these options."""
    found = [] if context is None else [f"evaluate.context={context}"]
    found += ["evaluate.reset_at_documents=true"] if reset else []
    return found + (["evaluate.mixture=true"] if mixture else [])


def add_to(app: typer.Typer) -> None:
    @command(app, "eval-sliding", examples=("pgolf eval-sliding --name gptq",))
    def eval_sliding(
        common: Common,
        documents: Documents = (),  # type: ignore[assignment]
        text_field: TextField = "text",
        context: Context = None,
        reset: Reset = False,
        mixture: Mixture = False,
        nproc: Nproc = 1,
    ) -> None:
        """Score a model with sliding windows, every token once."""
        if launched(nproc):
            return
        from stages.eval_sliding import eval_sliding as run
        from stages.views import evaluation

        stages, source = common.prepare("eval-sliding", *assignments(context, reset, mixture))
        scored = run(
            stages,
            source,
            evaluation.Documents.of(documents, text_field),
        )
        if stages.runtime.is_main:
            evaluation.report(stages.reporter, scored)
            common.finish(scored)
        stages.runtime.shutdown()
