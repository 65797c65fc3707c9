"""`pgolf package`: coded weights and the script that runs them, against the byte cap."""

from typing import TYPE_CHECKING, Annotated

import typer

from cli.common import Common, command

if TYPE_CHECKING:
    from pgolf.progress import Reporter
    from pgolf.store.stage_directory import Stage


def add_to(app: typer.Typer) -> None:
    @command(app, "package")
    def package(
        common: Common,
        cap: Annotated[int | None, typer.Option(help="Byte cap, decimal; 16,000,000 unless configured.")] = None,
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
        show(context.reporter, stage)
        common.finish(stage)


def show(reporter: "Reporter", stage: "Stage") -> None:
    """The ledger of a package: what counts, the disputed readings, and where the bytes are."""
    ledger = stage.manifest.details["ledger"]
    reporter.table(
        f"{stage.path}",
        ("file", "bytes", "counts"),
        [(row["file"], f"{row['bytes']:,}", "yes" if row["counted"] else "no") for row in ledger["files"]]
        + [("what counts", f"{ledger['counted_bytes']:,}", f"of {ledger['cap_bytes']:,}")],
    )
    names = {
        "shipped": "as shipped (decides)",
        "packed": "packed, not minified",
        "minified_packed": "minified and packed",
        "sources": "plain sources",
    }
    reporter.table(
        "the code, as the field disputes it",
        ("reading", "bytes"),
        [(names[key], f"{size:,}") for key, size in ledger["readings"].items()],
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
