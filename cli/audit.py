"""`pgolf audit`: test an evaluation's validity as a black box."""

from typing import Annotated

import typer

from cli import numbers
from cli.common import Common, command
from cli.eval_sliding import Mixture, assignments


def add_to(app: typer.Typer) -> None:
    @command(app, "audit", examples=("pgolf audit",))
    def audit(
        common: Common,
        evaluator: Annotated[str, typer.Option(help="sliding or ttt.")] = "sliding",
        tokens: Annotated[int, typer.Option(help="Length of val to audit on; 0: several windows.")] = 0,
        probes: Annotated[int, typer.Option(help="Changes of the text, an evaluation each.")] = 128,
        seconds: Annotated[
            float,
            typer.Option(parser=numbers.seconds, metavar="TIME", help="Stop probing after so long; 0: never."),
        ] = 300.0,
        limit_seconds: Annotated[
            float,
            typer.Option(parser=numbers.seconds, metavar="TIME", help="Of training and of evaluation."),
        ] = 600.0,
        probe_seed: Annotated[int | None, typer.Option(help="Repeat the draws of an earlier audit.")] = None,
        mixture: Mixture = False,
    ) -> None:
        """Test whether a score counts: causal, normalized, one pass, scored before learned.

        Changes the text and watches which scores move. Exit code 1 when a check fails.
        """
        from pgolf.errors import PgolfError
        from pgolf.store import stage_directory
        from stages.audit import AuditOptions
        from stages.audit import audit as run
        from stages.views import claims

        context, source = common.prepare("audit", *assignments(None, False, mixture))
        if source.manifest.stage == "package" and not stage_directory.exists(
            stage_directory.locate(source.path, source.manifest.inputs["model"])
        ):
            raise PgolfError(
                f"{source.path} is a package without its run, and an audit needs the text: "
                f"pgolf verify {source.path} --val TEXT --audit"
            )
        options = AuditOptions(evaluator, tokens, probes, seconds, limit_seconds, probe_seed)
        score = claims.scores_of(claims.scored_model(source), context.run).get(f"eval-{evaluator}")
        common.finish(run(context.adopt(score, context.own("audit"), source), source, options))
