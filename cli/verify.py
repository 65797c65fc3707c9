"""`pgolf verify`: check a package's claims."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from cli import numbers
from cli.common import Common, command

_EXAMPLES = ("pgolf verify artifacts/default/package",)


def add_to(app: typer.Typer) -> None:
    @command(app, "verify", ("device", "threads", "json", "verbose", "debug"), _EXAMPLES)
    def verify(
        common: Common,
        folder: Annotated[
            Path, typer.Argument(metavar="FOLDER", help="Package, or a run with one; it is not trusted.")
        ],
        val: Annotated[
            Path | None,
            typer.Option(help="Scored text, documents or shards; default: the run's own."),
        ] = None,
        tokenizer: Annotated[
            Path | None,
            typer.Option(help="Tokenizer of --val's shards; default: the .model there."),
        ] = None,
        run_code: Annotated[
            bool, typer.Option("--run-code", help="Also run the package's own script, in a sandbox.")
        ] = False,
        trust: Annotated[
            bool, typer.Option("--trust", help="With --run-code: run it even where no sandbox works.")
        ] = False,
        audit: Annotated[
            bool, typer.Option("--audit", help="Audit every score, not only those claimed as audited.")
        ] = False,
        cap: Annotated[
            int,
            typer.Option(parser=numbers.size, metavar="BYTES", help="Bytes of model and code."),
        ] = 16_000_000,
        count_tokenizer: Annotated[
            bool, typer.Option("--count-tokenizer", help="Count the tokenizer against --cap as well.")
        ] = False,
        seconds: Annotated[
            float,
            typer.Option(parser=numbers.seconds, metavar="TIME", help="Time limit of each scoring."),
        ] = 3600.0,
        tolerance: Annotated[
            float | None,
            typer.Option(help="Bits per byte a score may differ by; default: computed."),
        ] = None,
        text_field: Annotated[str, typer.Option(help="Field of a document's text.")] = "text",
    ) -> None:
        """Check a package's hashes, size, code and scores: PASS, FAIL or CANNOT CHECK.

        Exit code 0, 1 or 2. This pgolf computes the scores from the packed weights.
        """
        from cli.screen import say_error, say_json
        from pgolf.errors import CheckFailed, PgolfError
        from stages import verify as stage

        if tolerance is not None and tolerance < 0:
            raise PgolfError(f"--tolerance is {tolerance:g}; it must be at least 0")
        screen = common.screen
        options = stage.Options(
            val=val,
            tokenizer=tokenizer,
            text_field=text_field,
            cap_bytes=cap,
            count_tokenizer=count_tokenizer,
            tolerance=tolerance,
            audit=audit,
            run_code=run_code,
            trust=trust,
            device=common.device,
            threads=common.threads,
            seconds=seconds,
        )
        checks = stage.verify(folder, options, screen)
        answer = stage.answer_of(checks)
        rows = [(one.what, one.answer if one.answer != stage.FAIL else "FAIL", one.detail) for one in checks]
        screen.table(stage.printable(str(folder)), ("check", "answer", "result"), rows)
        if common.json:
            found = [dataclasses.asdict(one) for one in checks]
            say_json({"answer": answer, "checks": found})
        deciding = next((one for one in checks if one.answer == answer), None)
        if answer == stage.FAIL and deciding:
            say_error(f"FAIL {deciding.what}: {deciding.detail}")
            raise typer.Exit(CheckFailed.exit_code)
        if answer == stage.CANNOT and deciding:
            say_error(f"CANNOT CHECK {deciding.what}: {deciding.detail}")
            raise typer.Exit(PgolfError.exit_code)
        screen.result("PASS: this pgolf recomputed every claim from the packed weights and the text")
