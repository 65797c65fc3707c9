"""`pgolf budget`: where the bytes go, against a cap.

Bits are per weight, scales included; entropy is each tensor's own zero-order entropy, `to it` how far its symbols are
coded below (negative) or above it, `coder` how far they are from the cross-entropy of the coder's own model.
"""

import os
from pathlib import Path
from typing import Annotated

import typer

from cli import numbers
from cli.common import Common, command


def add_to(app: typer.Typer) -> None:
    @command(app, "budget", examples=("pgolf budget --cap 16MB",))
    def budget(
        common: Common,
        cap: Annotated[
            int | None,
            typer.Option(
                parser=numbers.size, metavar="BYTES", help="Byte cap, decimal; package.cap_bytes unless given."
            ),
        ] = None,
        png: Annotated[Path | None, typer.Option(help="Also draw it: bytes by role, rate against distortion.")] = None,
    ) -> None:
        """Show bytes, bits per weight and coding losses by tensor role; exit code 1 over the cap.

        Counts the run's package, or its quantize stage, or its checkpoint; --from names a stage or a model.pgz.
        """
        from cli.screen import say_error, say_json
        from pgolf.errors import CheckFailed, PgolfError
        from stages.reports import budget as budgets
        from stages.reports import budget_picture

        if png is not None and png.suffix.lower() != ".png":
            raise PgolfError(f"--png {png}: name a file that ends in .png")
        if png is not None and os.path.lexists(png) and not common.force:
            raise PgolfError(f"{png} exists; name another file, or replace it with --force")
        context = common.context(*([] if cap is None else [f"package.cap_bytes={cap}"]))
        if common.source is not None and common.source.is_file():
            found = budgets.of_file(common.source, context.adopt().config.package.cap_bytes)
        else:
            source = context.input(common.source, *budgets.KINDS)
            found = budgets.of_stage(context.adopt(source), source)
        rows: list[tuple[str, ...]] = []
        for line in found.roles:
            coded = line.entropy_bits > 0
            rows.append(
                (
                    line.role,
                    f"{line.weights:,}",
                    f"{line.bytes:,.0f}",
                    f"{100 * line.bytes / found.total_bytes:.1f}%",
                    f"{line.bits_per_weight:.3f}",
                    f"{line.entropy:.3f}" if coded else "",
                    f"{100 * line.against_entropy:+.2f}%" if coded else "",
                    f"{100 * line.coder_distance:+.3f}%" if line.model_bits else "",
                    f"{line.scale_bytes:,.0f}" if coded else "",
                )
            )
        others = {"header": found.header_bytes, **found.other_bytes}
        rows += [
            (name, "", f"{size:,}", f"{100 * size / found.total_bytes:.1f}%", *[""] * 5)
            for name, size in others.items()
        ]
        rows += [
            (name, "", f"{size:,}", *[""] * 6)
            for name, size in (("total", found.total_bytes), ("cap", found.cap_bytes))
        ]
        shown = 9 if common.verbose else 6  # what fits 80 columns
        context.reporter.table(
            f"{found.what} ({found.coder})",
            ("role", "weights", "bytes", "share", "bits", "entropy", "to it", "coder", "scales")[:shown],
            [row[:shown] for row in rows],
        )
        if png is not None:
            budget_picture.draw(found, png)
            context.reporter.message(f"drawn in {png}")
        if common.json:
            say_json(found.to_dict())
        if found.over > 0:
            say_error(
                f"{found.what} takes {found.total_bytes:,} bytes, {found.over:,} over the cap of {found.cap_bytes:,}; "
                f"{budgets.remedy(found.cap_bytes, found.other_bytes)}"
            )
            raise typer.Exit(CheckFailed.exit_code)
