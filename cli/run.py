"""`pgolf run`: text in, a scored and packaged model out."""

import dataclasses
import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.common import Common, command
from pgolf.store.records import PackageDetails, ScoreMetrics

if TYPE_CHECKING:
    from pgolf.evaluate.general_compressors import Reading
    from pgolf.progress import Reporter
    from stages.run import Chain


def add_to(app: typer.Typer) -> None:
    @command(app, "run", examples=("pgolf run train.jsonl --val val.jsonl --preset demo",))
    def run(
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
        text_field: Annotated[str, typer.Option(help="Field that holds the text.")] = "text",
        score_float: Annotated[bool, typer.Option("--float/--no-float", help="Score before quantization too.")] = True,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would run, and why.")] = False,
    ) -> None:
        """From text to a scored, packaged model: every stage in order. What is up to date is skipped."""
        from cli.screen import say_json
        from stages import run as chains
        from stages.reports import summary

        context = common.context()
        what = (train or [], val or [], tokenizer, shards, text_field, score_float)
        if dry_run:
            planned = chains.plan(context, *what)
            rows = [(row.label, "runs" if row.would_run else "", row.reason) for row in planned]
            context.reporter.table("dry run", ("stage", "", "why"), rows)
            if common.json:
                say_json({"stages": [dataclasses.asdict(row) for row in planned]})
            return
        chain = chains.run(context, *what)
        if not context.runtime.is_main:
            return
        readings = summary.readings(chain)
        texts = summary.samples(chain, context.runtime)
        _show(context.reporter, chain, readings, texts)
        if common.json:
            stages = {stage.label: json.loads(stage.manifest.to_json()) for stage in chain.stages}
            paths = {stage.label: str(stage.path) for stage in chain.stages}
            scores = {reading.key: reading.bits_per_byte for reading in readings}
            say_json({"paths": paths, "bits_per_byte": scores, "samples": texts, "stages": stages})


def _show(reporter: "Reporter", chain: "Chain", readings: list["Reading"], texts: list[str]) -> None:
    from pgolf.evaluate.general_compressors import left_out
    from stages.reports import summary
    from stages.views import repeat

    text_bytes = int(chain.sliding_score.manifest.metrics_as(ScoreMetrics)["bytes_scored"])
    intro = (
        f"How well is text predicted that was never seen in training ({text_bytes:,} bytes of it)? Bits per byte (BPB) "
        "is how many bits each byte of it costs when it is stored by such a prediction: less is better."
    )
    reporter.result("\n" + textwrap.fill(intro, 78))
    reporter.table(
        "",
        ("the unseen text, stored by", "bits per byte", "bytes"),
        [(reading.what, f"{reading.bits_per_byte:.4f}", f"{reading.bytes:,}") for reading in summary.shown(readings)],
    )
    if reason := left_out(text_bytes):
        reporter.result(reason)
    reporter.result(textwrap.fill(summary.verdict(readings), 78))
    if chain.proof is not None:
        reporter.result(textwrap.fill(summary.proof(chain.proof), 78))
    reporter.result("\nThe packaged model goes on where three unseen documents begin:")
    for text in texts:
        reporter.result(textwrap.shorten(text, 78, placeholder=" ..."))
    ledger = chain.packaged.manifest.details_as(PackageDetails)["ledger"]
    parts = " + ".join(f"{row['file']} {row['bytes']:,}" for row in ledger["files"] if row["counted"])
    reporter.result(f"\nThe package counts {ledger['counted_bytes']:,} of {ledger['cap_bytes']:,} bytes: {parts}")
    for what, value in repeat.lines(chain.packaged):
        reporter.result(f"{what}: {value}")
    reporter.result(f"It is in {chain.packaged.path}")
    reporter.result(f"next: pgolf sample, inspect, audit or report, with --run {chain.packaged.path.parent.name}")
