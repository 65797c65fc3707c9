"""`pgolf inspect`: a run's stages, their lineage and scores."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.common import Common, command

if TYPE_CHECKING:
    from pgolf.store.manifest import Manifest

_HEADLINE = ("bits_per_byte", "total_bytes", "model_bytes", "holdout_bits_per_byte", "parameters")


def add_to(app: typer.Typer) -> None:
    @command(app, "inspect")
    def inspect(
        common: Common,
        check: Annotated[bool, typer.Option("--check", help="Also verify the hash of every payload file.")] = False,
    ) -> None:
        """Show the stages of a run (or of one directory with --from): lineage, time, scores. Exit code 1 if changed."""
        from cli.screen import say_error, say_json
        from pgolf.data import files
        from pgolf.errors import CheckFailed, PgolfError
        from pgolf.store import lineage, runs, stage_directory

        stages = [stage_directory.open_stage(common.source)] if common.source else runs.stages_of(common.run_dir)
        if not stages:
            raise PgolfError(f"{common.run_dir} holds no finished stage; pgolf run --run {common.run} makes them")
        rows, problems, report = [], [], []
        for stage in stages:
            inputs = lineage.ancestors(stage, lambda path: files.source(path).sha256)
            problems += [
                f"{stage.label}: its input {item.label} is {item.state}" for item in inputs if item.state == "changed"
            ]
            if check:
                problems += lineage.changed_outputs(stage)
            rows.append((stage.label, _inputs(inputs), _duration(stage.manifest.seconds), _score(stage.manifest)))
            report.append(
                json.loads(stage.manifest.to_json())
                | {"path": str(stage.path), "lineage": {item.role: item.state for item in inputs}}
            )
        common.screen.table(str(common.source or common.run_dir), ("stage", "made from", "time", "result"), rows)
        if common.json:
            say_json({"stages": report, "problems": problems})
        if problems:
            for problem in problems:
                say_error(problem)
            raise typer.Exit(CheckFailed.exit_code)


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
    for name in _HEADLINE:
        if name in manifest.metrics:
            value = manifest.metrics[name]
            return f"{value:.4f} {name}" if isinstance(value, float) else f"{value:,} {name}"
    return ""
