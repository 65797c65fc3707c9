"""`pgolf quantize`: a float model to integers on a grid."""

from pathlib import Path
from typing import Annotated, cast

import typer

from cli import numbers
from cli.common import Common, command

_SWEEP = "pgolf quantize --target-bytes 120k 140k --score"


def add_to(app: typer.Typer) -> None:
    @command(app, "quantize", examples=("pgolf quantize --method gptq --name gptq", _SWEEP))
    def quantize(
        common: Common,
        method: Annotated[str | None, typer.Option(help="trellis (default), waterfill, gptq, sdclip or rtn.")] = None,
        target_bytes: Annotated[
            list[str],
            typer.Option(
                metavar="BYTES...",
                callback=numbers.sizes,
                help="Bytes that everything counted in the package may take. Several make a variant each, "
                "quantize@BYTES.",
            ),
        ] = (),  # type: ignore[assignment]
        score: Annotated[
            bool,
            typer.Option("--score", help="Score with sliding windows; several are drawn."),
        ] = False,
        coder: Annotated[str | None, typer.Option(help="range, brotli, zlib or lzma (package.coder).")] = None,
        calibration: Annotated[
            Path | None,
            typer.Option(help="Train tokens where the lineage has none."),
        ] = None,
    ) -> None:
        """Quantize a trained model, to one byte target or to several."""
        from cli.screen import say_json
        from pgolf.quant.methods import METHODS
        from stages.eval_sliding import eval_sliding
        from stages.quantize import quantize as stage
        from stages.reports import sweep

        targets = cast(list[int], target_bytes)  # converted by numbers.sizes
        extra = [] if method is None else [f"quantize.method={method}"]
        if method in METHODS and not METHODS[method].chooses_steps and not targets:
            extra.append("quantize.target_bytes=0")  # a run's own target is for methods that choose their steps
        extra += [] if coder is None else [f"package.coder={coder}"]
        extra += [f"quantize.target_bytes={target}" for target in targets[:1]]
        context, source = common.prepare("quantize", *extra)
        if len(targets) < 2:
            made = stage(context, source, calibration)
            if score:
                eval_sliding(context, made)
            common.finish(made)
            return
        variants = sweep.sweep(context, source, targets, calibration, score)
        sweep.show(context, variants)
        if score:
            picture = context.run / f"{context.label('sweep')}.png"
            sweep.draw(variants, picture)
            context.reporter.message(f"drawn in {picture}")
        if common.json:
            say_json({"variants": [variant.to_dict() for variant in variants]})
