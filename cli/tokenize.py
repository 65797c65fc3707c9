"""`pgolf tokenize`: documents to shards."""

from pathlib import Path
from typing import Annotated

import typer

from cli.common import Common, command


def add_to(app: typer.Typer) -> None:
    @command(app, "tokenize", examples=("pgolf tokenize train.jsonl --val val.jsonl",))
    def tokenize(
        common: Common,
        train: Annotated[
            list[str] | None,
            typer.Argument(
                metavar="TRAIN...",
                help="Train documents (.txt, .jsonl, .parquet, also .gz, .xz, .zst), folders or URLs; default: the "
                "documentation of this Python.",
            ),
        ] = None,
        val: Annotated[
            list[str] | None,
            typer.Option("--val", metavar="VAL...", help="Val documents; default: a share of train by hash."),
        ] = None,
        tokenizer: Annotated[Path | None, typer.Option(help="SentencePiece model to use, not a new one.")] = None,
        shards: Annotated[Path | None, typer.Option(help="Folder of shards to register as they are.")] = None,
        hub: Annotated[
            str | None,
            typer.Option(
                metavar="REPO",
                help="Where to fetch the challenge's shards: willdepueoai/parameter-golf, kevclark/parameter-golf, "
                "romeerp/parameter-golf-caseops-v1, a folder or a URL.",
            ),
        ] = None,
        variant: Annotated[
            str | None,
            typer.Option(help="Of --hub's shards, such as sp8192; default: as the preset."),
        ] = None,
        train_shards: Annotated[
            int | None,
            typer.Option(help="So many from --hub; default: 80, or all there are."),
        ] = None,
        text_field: Annotated[str, typer.Option(help="Field that holds the text.")] = "text",
    ) -> None:
        """Turn documents into token shards with exact byte counts."""
        from stages.tokenize import tokenize as make

        context = common.context()
        context = context.adopt(context.own("tokenize"))
        stage = make(context, train or [], val or [], tokenizer, shards, text_field, hub, variant, train_shards)
        common.finish(stage)
