"""`pgolf import`: a checkpoint of the challenge's scripts as a stage directory."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cli.common import Common, command


def add_to(app: typer.Typer) -> None:
    @command(app, "import", examples=("pgolf import final_model.pt --run old",))
    def import_checkpoint(
        common: Common,
        file: Annotated[
            Path,
            typer.Argument(metavar="FILE", help="State dict (.pt, .safetensors) or quantized file of a record (.ptz)."),
        ],
    ) -> None:
        """Read weights of another program into the run. --from names a tokenize stage.

        Sizes are read off the tensors. What they do not tell (loops, slopes, rotary dimensions) is assumed, named, and
        can be given with --set or --preset.
        """
        from pgolf import config as configs
        from pgolf import interop
        from pgolf.errors import PgolfError
        from pgolf.store import stage_directory
        from stages.import_checkpoint import import_checkpoint as make

        checkpoint = interop.read(file)
        for name, value in configs.composed(assignments=common.set).get("model", {}).items():
            if checkpoint.told.get(name, value) != value:
                told = checkpoint.told[name]
                raise PgolfError(f"--set model.{name}={value}: the tensors of {file} say {told}; leave it out")
        given = configs.composed(common.preset, common.config, common.set)
        chosen = {f"{section}.{key}" for section in ("model", "train") for key in given.get(section, {})}
        # The sizes go over everything else before the configuration is checked as a whole.
        sizes = checkpoint.composable().items()
        context = common.context(*(f"model.{name}={json.dumps(value)}" for name, value in sizes))
        tokens = None
        if common.source is not None or stage_directory.exists(common.run_dir / "tokenize"):
            tokens = context.input(common.source, "tokenize")
        else:
            context.reporter.message(
                "no tokenize stage in the run: register one first (pgolf tokenize --shards FOLDER) to score and package"
            )
        context = context.adopt(context.own("ema-finalize"), tokens)
        common.finish(make(context, checkpoint, tokens, chosen))
