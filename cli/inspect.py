"""`pgolf inspect`: a run's stages, their lineage and scores."""

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.common import LOOK, Common, command

if TYPE_CHECKING:
    from pgolf.store.manifest import Manifest

_EXAMPLES = ("pgolf inspect --check", "pgolf inspect --diff eval-sliding eval-ttt")
_HEADLINE = {
    "bits_per_byte": "{:.4f} bits per byte",
    "total_bytes": "{:,} bytes",
    "model_bytes": "{:,} bytes of model",
    "holdout_bits_per_byte": "{:.4f} BPB held out",
    "parameters": "{:,} weights",
}


def add_to(app: typer.Typer) -> None:
    @command(app, "inspect", (*LOOK, "source"), _EXAMPLES)
    def inspect(
        common: Common,
        check: Annotated[
            bool, typer.Option("--check", help="Also verify every payload file and the order of scoring.")
        ] = False,
        diff: Annotated[
            tuple[str, str] | None,
            typer.Option(metavar="A B", help="Show in what two stages of the run, or two runs, differ."),
        ] = None,
    ) -> None:
        """Show a run's stages: what each was made from, time, result.

        Exit code 1 when an input of a stage has changed since. --from names one stage directory.
        """
        from pgolf.store import lineage_file

        if diff is not None:
            _show_difference(common, diff)
            return
        if common.source is not None and common.source.is_file():
            with lineage_file.opened(common.source) as folder:
                there = dataclasses.replace(common, artifacts=folder.parent, run=folder.name, source=None)
                _show(there, False, str(common.source))
            return
        _show(common, check, str(common.source or common.run_dir))


def _show(common: Common, check: bool, title: str) -> None:
    from cli.screen import say_error, say_json
    from pgolf.data import files
    from pgolf.errors import CheckFailed, PgolfError
    from pgolf.evaluate import scoring_order
    from pgolf.store import lineage, runs, stage_directory
    from pgolf.store.kinds import ORDER

    stages = [stage_directory.open_stage(common.source)] if common.source else runs.stages_of(common.run_dir)
    if not stages:
        raise PgolfError(f"{runs.missing(common.run_dir)}; pgolf run makes a run")
    rows, problems, report = [], [], []
    for stage in stages:
        inputs = lineage.ancestors(stage, lambda path: files.source(path).sha256)
        problems += [
            f"{stage.label}: its input {item.label} is {item.state}" for item in inputs if item.state == "changed"
        ]
        if check:
            changed = lineage.changed_outputs(stage)
            problems += changed
            if ORDER in stage.manifest.outputs and not changed:
                details = stage.manifest.details
                updates = details.get("steps") if details.get("method") in ("sgd", "in-place") else None
                problems += scoring_order.faults(stage.path / ORDER, stage.manifest.metrics["tokens_scored"], updates)
        rows.append((stage.label, _inputs(inputs), _duration(stage.manifest.seconds), _score(stage.manifest)))
        report.append(
            json.loads(stage.manifest.to_json())
            | {"path": str(stage.path), "lineage": {item.role: item.state for item in inputs}}
        )
    common.screen.table(title, ("stage", "made from", "time", "result"), rows)
    if common.json:
        say_json({"stages": report, "problems": problems})
    if problems:
        for problem in problems:
            say_error(problem)
        raise typer.Exit(CheckFailed.exit_code)


def _show_difference(common: Common, names: tuple[str, str]) -> None:
    from cli.screen import say_json
    from pgolf.store import runs, stage_directory
    from stages.reports import runs_table

    places = [
        common.run_dir / name if stage_directory.exists(common.run_dir / name) else runs.find(common.artifacts, name)
        for name in names
    ]
    found = runs_table.compared(*places)
    if common.json:
        say_json({"differences": [dict(zip(("what", "name", "a", "b"), row, strict=True)) for row in found]})
    elif not found:
        common.screen.result(f"{names[0]} and {names[1]} do not differ")
    else:
        rows = [(what, name, _value(a), _value(b), _change(a, b)) for what, name, a, b in found]
        common.screen.table("", ("", "what differs", *names, "change"), rows)


def _value(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}" if isinstance(value, float) else str(value)


def _change(a: Any, b: Any) -> str:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (a, b))
    return f"{b - a:+,.6g}" if numbers else ""


def _inputs(items: list[Any]) -> str:
    fine = ("ok", "unchecked")
    shown = [item.label if item.state in fine else f"{item.label} ({item.state})" for item in items[:3]]
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return ", ".join(shown) + more


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def _score(manifest: "Manifest") -> str:
    if failed := manifest.details.get("failed"):
        return f"failed: {', '.join(failed)}"
    if manifest.stage == "prove":
        part = "all" if manifest.details["whole"] else f"{manifest.metrics['bytes_scored']:,} bytes"
        claimed, coded = (manifest.metrics[name] for name in ("claimed_bits_per_byte", "bits_per_byte"))
        return f"{claimed:.4f} claimed, {coded:.4f} coded and decoded ({part})"
    if tokens := manifest.details.get("train", {}).get("tokens"):
        return f"{tokens:,} train tokens"
    return next(
        (text.format(manifest.metrics[name]) for name, text in _HEADLINE.items() if name in manifest.metrics), ""
    )
