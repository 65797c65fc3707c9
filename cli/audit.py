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
        tokens: Annotated[int, typer.Option(help="Length of val to audit on; 0: several windows or chunks.")] = 0,
        probes: Annotated[int, typer.Option(help="Changes of the text, one evaluation each.")] = 128,
        seconds: Annotated[
            float,
            typer.Option(
                parser=numbers.seconds, metavar="TIME", help="Stop probing after so long (8 at least); 0: never."
            ),
        ] = 300.0,
        limit_seconds: Annotated[
            float,
            typer.Option(parser=numbers.seconds, metavar="TIME", help="Limit of training and of evaluation, each."),
        ] = 600.0,
        probe_seed: Annotated[
            int | None, typer.Option(help="Repeat the draws of an earlier audit. Default: new ones.")
        ] = None,
        mixture: Mixture = False,
    ) -> None:
        """Test whether a score counts: causal, normalized, scored before learned from, in one pass, exact bytes.

        Changes the text and watches which scores move; no code is trusted. Exit code 1 and the first counterexample
        when a check fails; the report is written either way.
        """
        from stages.audit import AuditOptions
        from stages.audit import audit as run
        from stages.views import claims

        context, source = common.prepare("audit", *assignments(None, False, mixture))
        options = AuditOptions(evaluator, tokens, probes, seconds, limit_seconds, probe_seed)
        score = claims.scores_of(claims.scored_model(source), context.run).get(f"eval-{evaluator}")
        common.finish(run(context.adopt(score, context.own("audit"), source), source, options))
