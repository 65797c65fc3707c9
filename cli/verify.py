"""`pgolf verify`: hold a package to what it claims."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from cli import numbers
from cli.common import guarded

_SHOWN = {True: "yes", False: "NO", None: "-"}


def add_to(app: typer.Typer) -> None:
    @app.command("verify")
    def verify(
        folder: Annotated[Path, typer.Argument(help="Package to verify. It is not trusted.")],
        val: Annotated[
            Path | None,
            typer.Option(help="Text that the scores are of: shards or documents. None: the tokenize stage beside it."),
        ] = None,
        run_code: Annotated[
            bool, typer.Option("--run-code", help="Also run the package's own script, guarded.")
        ] = False,
        audit: Annotated[
            bool, typer.Option("--audit", help="Audit the scores too, where the package holds no audit of them.")
        ] = False,
        seconds: Annotated[
            float,
            typer.Option(parser=numbers.seconds, metavar="TIME", help="Time limit of each scoring."),
        ] = 3600.0,
        tolerance: Annotated[float, typer.Option(help="Bits per byte that a score may differ by.")] = 1e-6,
        text_field: Annotated[str, typer.Option(help="Field of a document's text in JSON lines.")] = "text",
        device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
        threads: Annotated[int, typer.Option(help="CPU threads; 0: every core.")] = 0,
        as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout and nothing else.")] = False,
        debug: Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")] = False,
    ) -> None:
        """Check a package's hashes, bytes, scores and audit; say true or false. Exit code 1 for false."""

        def work() -> None:
            from cli.screen import Screen, say_error, say_json
            from pgolf.errors import CheckFailed
            from stages.verify import verify as check

            screen = Screen()
            checks = check(folder, val, screen, device, threads, run_code, seconds, text_field, tolerance, audit)
            true = not any(one.failed for one in checks)
            screen.table(
                str(folder),
                ("check", "", "what was found"),
                [(one.what, _SHOWN[one.passed], one.detail) for one in checks],
            )
            if as_json:
                found = [dataclasses.asdict(one) for one in checks]
                say_json({"true": true, "checks": found})
            if not true:
                say_error(f"false: {checks[-1].what}: {checks[-1].detail}")
                raise typer.Exit(CheckFailed.exit_code)
            screen.message("true: the package is what it claims to be")

        guarded(work, debug=debug, as_json=as_json)
