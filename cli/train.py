"""`pgolf train`: from tokens to weights."""

from typing import Annotated

import typer

from cli import numbers
from cli.common import Common, command
from cli.launch import Nproc, launched


def add_to(app: typer.Typer) -> None:
    @command(app, "train", examples=("pgolf train --preset demo --set train.iterations=20 --name short",))
    def train(
        common: Common,
        iterations: Annotated[int | None, typer.Option(help="Optimizer steps at most (train.iterations).")] = None,
        seconds: Annotated[
            float | None,
            typer.Option(parser=numbers.seconds, metavar="TIME", help="Wall-clock cap (train.seconds); 0: none."),
        ] = None,
        finish: Annotated[bool, typer.Option("--finish", help="End a stopped run where it is.")] = False,
        nproc: Nproc = 1,
    ) -> None:
        """Train a model on the run's tokens.

        The same command continues a stopped run; more --iterations or --seconds lengthen it, --finish ends it as it is.
        """
        if launched(nproc):
            return
        from stages.train import train as train_stage

        extra = [] if iterations is None else [f"train.iterations={iterations}"]
        extra += [] if seconds is None else [f"train.seconds={float(seconds)}"]
        context, source = common.prepare("train", *extra)
        stage = train_stage(context, source, finish)
        if context.runtime.is_main:
            common.finish(stage)
        context.runtime.shutdown()
