"""`pgolf quantize`: a float model to integers on a grid."""

from pathlib import Path
from typing import Annotated

import typer

from cli.common import Common, command


def add_to(app: typer.Typer) -> None:
    @command(app, "quantize")
    def quantize(
        common: Common,
        method: Annotated[str | None, typer.Option(help="rtn, sdclip, gptq, waterfill or trellis.")] = None,
        target_bytes: Annotated[
            int | None,
            typer.Option(help="Choose all steps so that all that the package counts takes at most so many bytes."),
        ] = None,
        coder: Annotated[
            str | None, typer.Option(help="How the model is coded: range, brotli, zlib or lzma; package.coder for it.")
        ] = None,
        calibration: Annotated[
            Path | None,
            typer.Option(help="Tokenize stage, folder of shards or shard to calibrate on, when the lineage has none."),
        ] = None,
    ) -> None:
        """Quantize the weights of a trained model."""
        from pgolf.config.quantize import CHOOSES_STEPS
        from stages.quantize import quantize as stage

        extra = [] if method is None else [f"quantize.method={method}"]
        if method is not None and method not in CHOOSES_STEPS and target_bytes is None:
            extra.append("quantize.target_bytes=0")  # a run's own target is for methods that choose their steps
        extra += [] if coder is None else [f"package.coder={coder}"]
        extra += [] if target_bytes is None else [f"quantize.target_bytes={target_bytes}"]
        context, source = common.prepare("quantize", *extra)
        common.finish(stage(context, source, calibration))
