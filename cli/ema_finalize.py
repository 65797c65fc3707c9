"""`pgolf ema-finalize`: the best of the weights and averages that training left."""

import typer

from cli.common import Common, command


def add_to(app: typer.Typer) -> None:
    @command(app, "ema-finalize", examples=("pgolf ema-finalize",))
    def ema_finalize(common: Common) -> None:
        """Choose among last and averaged weights, by held-out loss."""
        from stages.ema_finalize import ema_finalize as stage

        common.finish(stage(*common.prepare("ema-finalize")))
