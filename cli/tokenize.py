"""`pgolf tokenize`: documents to shards."""

from pathlib import Path
from typing import Annotated

import typer

from cli.common import Common, command


def add_to(app: typer.Typer) -> None:
    @command(app, "tokenize")
    def tokenize(
        common: Common,
        train: Annotated[
            list[str] | None,
            typer.Argument(
                metavar="TRAIN...",
                help="Train documents: .txt, .jsonl, .parquet (plain, .gz, .xz, .zst), folders, URLs (hf://, s3://). "
                "Without any: the documentation of this Python.",
            ),
        ] = None,
        val: Annotated[
            list[str] | None,
            typer.Option("--val", metavar="VAL...", help="Val documents; without: split off train by document hash."),
        ] = None,
        tokenizer: Annotated[
            Path | None, typer.Option(help="SentencePiece model to use in place of training one.")
        ] = None,
        shards: Annotated[
            Path | None, typer.Option(help="Folder of shards in the challenge's format to register as they are.")
        ] = None,
        text_field: Annotated[str, typer.Option(help="Field or column that holds the text.")] = "text",
    ) -> None:
        """Turn documents into token shards, with a tokenizer trained on them and exact byte counts."""
        from stages.tokenize import tokenize as make

        stage = make(common.context(), train or [], val or [], tokenizer, shards, text_field)
        common.finish(stage)
