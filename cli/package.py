"""`pgolf package`: coded weights and the script that runs them, against the byte cap."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import numbers
from cli.common import Common, command
from pgolf.store.records import PackageDetails

if TYPE_CHECKING:
    from pgolf.progress import Reporter
    from pgolf.store.stage_directory import Stage


def add_to(app: typer.Typer) -> None:
    @command(app, "package", examples=("pgolf package --name gptq",))
    def package(
        common: Common,
        cap: Annotated[
            int | None,
            typer.Option(parser=numbers.size, metavar="BYTES", help="Byte cap, decimal; 16,000,000 unless configured."),
        ] = None,
        count_tokenizer: Annotated[
            bool, typer.Option("--count-tokenizer", help="Count the tokenizer too; the challenge does not.")
        ] = False,
    ) -> None:
        """Write the artifact that runs by itself and count its bytes; exit code 1 over the cap."""
        from stages.package import package as make

        extra = [] if cap is None else [f"package.cap_bytes={cap}"]
        extra += ["package.count_tokenizer=true"] if count_tokenizer else []
        context, source = common.prepare("package", *extra)
        stage = make(context, source)
        show(context.reporter, stage, common.verbose)
        common.finish(stage)


def show(reporter: "Reporter", stage: "Stage", verbose: bool) -> None:
    """Four lines: bytes, path, verdict, next command. verbose: also tables of the code, the roles and the modules."""
    ledger = stage.manifest.details_as(PackageDetails)["ledger"]
    if verbose:
        _tables(reporter, ledger)
    counted = " + ".join(f"{row['file']} {row['bytes']:,}" for row in ledger["files"] if row["counted"])
    apart = "".join(f"; {row['file']} {row['bytes']:,} not counted" for row in ledger["files"] if not row["counted"])
    reporter.result(f"packaged {ledger['counted_bytes']:,} bytes: {counted}{apart}")
    reporter.result(f"{stage.path}")
    left = ledger["cap_bytes"] - ledger["counted_bytes"]
    reporter.result(f"{'under' if left >= 0 else 'over'} the cap of {ledger['cap_bytes']:,} by {abs(left):,} bytes")
    reporter.result(f"next: pgolf verify {stage.path}")


def _tables(reporter: "Reporter", ledger: dict[str, Any]) -> None:
    reporter.table(
        "sizes of the code; the shipped file decides",
        ("file", "bytes"),
        [(k, f"{v:,}") for k, v in ledger["readings"].items()],
    )
    reporter.table(
        "model.pgz by role",
        ("role", "weights", "bytes"),
        [(row["role"], f"{row['weights']:,}", f"{row['bytes']:,}") for row in ledger["model"]],
    )
    reporter.table(
        "train_gpt.py by module",
        ("module", "source", "minified", "packed"),
        [
            (row["module"], f"{row['source_bytes']:,}", f"{row['minified_bytes']:,}", f"{row['packed_bytes']:,}")
            for row in ledger["code"]
        ],
    )
