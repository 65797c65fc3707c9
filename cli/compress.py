"""`pgolf compress` and `pgolf decompress`: a text file as the bits that a model needs for it, and back."""

from pathlib import Path
from typing import Annotated

import typer

from cli.common import Common, command

_OUTPUT = typer.Option("--output", help="File to write; default: FILE with .pgt added, or taken away.")


def add_to(app: typer.Typer) -> None:
    @command(app, "compress", examples=("pgolf compress val.jsonl",))
    def compress(
        common: Common,
        file: Annotated[Path, typer.Argument(metavar="FILE", help="Any file of text.")],
        output: Annotated[Path | None, _OUTPUT] = None,
        ttt: Annotated[
            bool, typer.Option("--ttt", help="Let the model learn from the text on the way: smaller, slower.")
        ] = False,
    ) -> None:
        """Compress a file with the run's model; only the same model on a like machine gets it back."""
        from cli.screen import say_json
        from stages import compress as stage

        # The model that an evaluation would score, with its settings.
        context, source = common.prepare("eval-ttt" if ttt else "eval-sliding")
        done = stage.compress(context, source, file, output, ttt)
        found = done.compressed
        assert found is not None
        if common.json:
            say_json(
                {
                    "path": str(done.path),
                    "model": str(done.stage.path),
                    "bytes": len(found.data),
                    "text_bytes": found.text_bytes,
                    "code_bytes": found.code_bytes,
                    "tokens": found.tokens,
                    "bits_per_byte": found.bits_per_byte,
                }
            )
        share = f", {len(found.data) / found.text_bytes:.1%}" if found.text_bytes else ""
        context.reporter.message(
            f"{file}: {found.text_bytes:,} bytes became {len(found.data):,}{share} "
            f"({found.code_bytes:,} of code, the rest header and checks), in {done.path}"
        )

    @command(app, "decompress", examples=("pgolf decompress val.jsonl.pgt --output back.jsonl",))
    def decompress(
        common: Common,
        file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that pgolf compress wrote.")],
        output: Annotated[Path | None, _OUTPUT] = None,
    ) -> None:
        """Get a compressed file back, with the same model."""
        from cli.screen import say_json
        from stages import compress as stage

        context, source = common.prepare("eval-sliding")
        done = stage.decompress(context, source, file, output)
        if common.json:
            say_json({"path": str(done.path), "model": str(done.stage.path), "bytes": done.path.stat().st_size})
        context.reporter.message(f"{file}: the text is in {done.path}, {done.path.stat().st_size:,} bytes")
