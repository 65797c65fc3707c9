"""`pgolf package`: coded weights and the script that runs them, against the byte cap."""

from typing import Annotated

import typer

from cli.common import Common, command


def add_to(app: typer.Typer) -> None:
    @command(app, "package")
    def package(
        common: Common,
        cap: Annotated[int | None, typer.Option(help="Byte cap, decimal; 16,000,000 unless configured.")] = None,
    ) -> None:
        """Write the artifact that runs by itself and count its bytes; exit code 1 over the cap."""
        from stages.package import package as make

        extra = [] if cap is None else [f"package.cap_bytes={cap}"]
        context = common.context(*extra)
        stage = make(context, context.input(common.source, "quantize"))
        metrics, details = stage.manifest.metrics, stage.manifest.details
        context.reporter.table(
            f"{stage.path}",
            ("file", "bytes", "counted"),
            [(row["file"], f"{row['bytes']:,}", "yes" if row["counted"] else "no") for row in details["ledger"]]
            + [("total", f"{metrics['total_bytes']:,}", f"of {details['cap_bytes']:,}")],
        )
        common.finish(stage)
