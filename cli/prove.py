"""`pgolf prove`: turn a score into a file that only a model of that score can be behind."""

from typing import Annotated

import typer

from cli.common import Common, command


def add_to(app: typer.Typer) -> None:
    @command(app, "prove", examples=("pgolf prove --score sliding --tokens 500 --name part",))
    def prove(
        common: Common,
        score: Annotated[str, typer.Option(help="sliding or ttt, where the run has both scores.")] = "",
        tokens: Annotated[int, typer.Option(min=0, help="Prove only this many tokens from the beginning; 0: all.")] = 0,
        documents: Annotated[
            list[str] | None,
            typer.Option(metavar="FILE...", help="The scored text, for a package (--from) without its run."),
        ] = None,
        text_field: Annotated[str, typer.Option(help="Field of a document's text in JSON lines.")] = "text",
    ) -> None:
        """Code the text into the bits that its score claims, and decode it.

        --from names an evaluation, or a package whose own claim is proved; the package's script is never run.
        """
        from pgolf.errors import PgolfError
        from pgolf.store import kinds
        from stages.prove import prove as run
        from stages.views.evaluation import Documents

        row = kinds.KINDS["prove"]
        wanted = tuple(kind for kind in row.after if score in ("", kind.removeprefix("eval-")))
        if not wanted:
            raise PgolfError(f"--score {score!r}: choose sliding or ttt")
        stages = common.context()
        source = stages.input(common.source, *wanted, also=row.also)
        text = Documents.of(documents or (), text_field)
        common.finish(run(stages.adopt(source), source, tokens, score, text))
