"""`pgolf import`: a checkpoint of the challenge's scripts as a stage directory."""

from pathlib import Path
from typing import Annotated

import typer

from cli.common import Common, command


def add_to(app: typer.Typer) -> None:
    @command(app, "import")
    def import_checkpoint(
        common: Common,
        file: Annotated[Path, typer.Argument(help="State dict (.pt, .safetensors) or quantized .ptz.")],
    ) -> None:
        """Read old weights into the run, to quantize, score and package them; --from names a tokenize stage."""
        from pgolf.store import stage_directory
        from stages.import_checkpoint import import_checkpoint as make

        context = common.context()
        tokens = None
        if common.source is not None or stage_directory.exists(common.run_dir / "tokenize"):
            tokens = context.input(common.source, "tokenize")
        else:
            context.reporter.message(
                "no tokenize stage in the run: register one first (pgolf tokenize --shards FOLDER) to score and package"
            )
        common.finish(make(context.adopt(context.own("ema-finalize"), tokens), file, tokens))
