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
        hub: Annotated[
            str | None,
            typer.Option(
                metavar="REPO",
                help="Dataset repository (or folder, URL) with the challenge's shards to fetch. Records name "
                "willdepueoai/parameter-golf, kevclark/parameter-golf and romeerp/parameter-golf-caseops-v1.",
            ),
        ] = None,
        variant: Annotated[
            str | None,
            typer.Option(
                help="Variant of --hub's shards (sp1024, sp8192, ...); default: the one with the vocabulary of "
                "--preset or --config, without these the only one."
            ),
        ] = None,
        train_shards: Annotated[
            int | None,
            typer.Option(
                help="Number of train shards that --hub fetches, besides all val shards; default: 80, or "
                "all if fewer are published. A default of more than 2 GB is asked for."
            ),
        ] = None,
        text_field: Annotated[str, typer.Option(help="Field or column that holds the text.")] = "text",
    ) -> None:
        """Turn documents into token shards, with a tokenizer trained on them and exact byte counts."""
        from stages.tokenize import tokenize as make

        context = common.context()
        context = context.adopt(context.own("tokenize"))
        stage = make(context, train or [], val or [], tokenizer, shards, text_field, hub, variant, train_shards)
        common.finish(stage)
