"""Every run and variant of an artifacts folder in one table."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pgolf.errors import PgolfError, did_you_mean
from pgolf.store import lineage, runs, stage_directory
from pgolf.store.records import (
    PackageDetails,
    PackageMetrics,
    ProveMetrics,
    QuantizeMetrics,
    ScoreMetrics,
    TrainMetrics,
)
from pgolf.store.stage_directory import Stage
from stages.views import proofs


@dataclass(frozen=True)
class Row:
    """A run's plain stages, or those of one variant; None where it has no such stage."""

    run: str
    """`demo`, or `demo@int5` for a variant."""
    date: str
    """When its newest stage was started, UTC: `2026-11-29 03:40`."""
    preset: str | None
    """As the command named it."""
    tokens: int | None
    """Train tokens that the model has seen."""
    bytes: int | None
    """Counted bytes of the package; without a package, bytes of the coded model."""
    bits_per_byte: float | None
    """With sliding windows."""
    ttt_bits_per_byte: float | None
    """With learning at test time."""
    quantizer: str | None
    proved: float | None
    """Bits per byte of the proof (`pgolf prove`) that holds and covers most of the text."""


COLUMNS = tuple(field.name for field in fields(Row))


def rows(artifacts: Path, sort: str = "date", unreadable: Callable[[str], None] = lambda fault: None) -> list[Row]:
    """One row per run and variant, sorted by a column, rows without a value last.

    unreadable: told the fault of each stage that cannot be read, such as one of a newer pgolf; it is left out.
    Raises PgolfError for an unknown column and for a folder without a run.
    """
    if sort not in COLUMNS:
        raise PgolfError(f"no column {sort!r}{did_you_mean(sort, COLUMNS)}; columns: {', '.join(COLUMNS)}")
    names = runs.names(artifacts)
    if not names:
        raise PgolfError(f"{artifacts} holds no run; pgolf run makes one, --artifacts names another folder")
    found: list[Row] = []
    for name in names:
        stages = []
        for folder in stage_directory.stage_folders(artifacts / name):
            try:
                stages.append(stage_directory.open_stage(folder))
            except PgolfError as error:
                unreadable(str(error))
        found += _of_run(name, sorted(stages, key=runs.age))
    return sorted(found, key=lambda row: (getattr(row, sort) is None, getattr(row, sort) or 0, row.run))


def _of_run(run: str, stages: Sequence[Stage]) -> list[Row]:
    variants: dict[str, dict[str, Stage]] = {}
    for stage in stages:
        kind, _, variant = stage.label.partition("@")
        variants.setdefault(variant, {})[kind] = stage
    tokens: dict[str, int] = {}
    proved: dict[str, float] = {}
    for proof in proofs.proofs_of(stages):
        metrics, variant = proof.stage.manifest.metrics_as(ProveMetrics), proof.of.partition("@")[2]
        if not proof.stale and metrics["tokens_scored"] > tokens.get(variant, 0):
            tokens[variant], proved[variant] = metrics["tokens_scored"], metrics["bits_per_byte"]
    return [
        _row(f"{run}@{name}" if name else run, own, variants.get("", {}), proved.get(name))
        for name, own in variants.items()
        if not name or set(own) - {"audit", "prove", "report"}  # those are named after what they look at
    ]


def _row(name: str, own: dict[str, Stage], plain: dict[str, Stage], proved: float | None) -> Row:
    date = max(stage.manifest.started for stage in own.values())[:16].replace("T", " ")
    preset = next(filter(None, (_preset(stage) for stage in (*own.values(), *plain.values()))), None)
    # A score of the model before would stand beside the size of the new one.
    own = {kind: stage for kind, stage in own.items() if kind == "train" or not lineage.outdated(stage)}
    trained, quantized = _lineage(own, "train"), _lineage(own, "quantize")
    packaged = own.get("package")
    counted = packaged.manifest.metrics_as(PackageMetrics).get("total_bytes") if packaged else None
    if packaged and "ledger" in packaged.manifest.details:
        counted = packaged.manifest.details_as(PackageDetails)["ledger"]["counted_bytes"]
    if counted is None and quantized is not None:
        counted = quantized.manifest.metrics_as(QuantizeMetrics).get("model_bytes")
    return Row(
        run=name,
        date=date,
        preset=preset,
        tokens=trained.manifest.metrics_as(TrainMetrics).get("tokens") if trained else None,
        bytes=counted,
        bits_per_byte=_score(own.get("eval-sliding")),
        ttt_bits_per_byte=_score(own.get("eval-ttt")),
        quantizer=quantized.manifest.config["quantize"]["method"] if quantized else None,
        proved=proved,
    )


def _lineage(own: Mapping[str, Stage], kind: str) -> Stage | None:
    """The variant's own stage of a kind, else the one that its stages were made from, of whatever variant that is."""
    for stage in (own[kind],) if kind in own else own.values():
        with suppress(PgolfError):
            return stage.ancestor(kind)
    return None


def _score(stage: Stage | None) -> float | None:
    return None if stage is None else stage.manifest.metrics_as(ScoreMetrics)["bits_per_byte"]


def _preset(stage: Stage) -> str | None:
    words = stage.manifest.command
    for index, word in enumerate(words):
        if word == "--preset":
            return words[index + 1] if index + 1 < len(words) else None
        if word.startswith("--preset="):
            return word.partition("=")[2]
    return None


def compared(left: Path, right: Path) -> list[tuple[str, str, Any, Any]]:
    """(what, name, left, right) for every setting, input and number in which two runs or stage directories differ.

    what: `setting`, `input` or `number`. Of two runs, each stage that both have is compared.
    """
    from pgolf.config import catalog

    sides = [_by_label(place) for place in (left, right)]
    if any(len(side) == 1 for side in sides):  # stages: compared whatever their variants
        sides = [{"": [*side.values()][-1]} if len(side) == 1 else {"": runs.last_stage(place)}
                 for side, place in zip(sides, (left, right), strict=True)]  # fmt: skip
    found: list[tuple[str, str, Any, Any]] = []
    for label in [label for label in sides[0] if label in sides[1]]:
        one, other = (side[label].manifest for side in sides)
        prefix = f"{label} " if label else ""
        found += [("setting", key, *pair) for key, pair in catalog.differences(one.config, other.config).items()]
        for role in {**one.inputs, **other.inputs}:
            pair = [manifest.inputs.get(role) for manifest in (one, other)]
            shown = [item and f"{item.name or Path(item.path).name} {item.sha256[:8]}" for item in pair]
            if shown[0] != shown[1]:
                found.append(("input", f"{prefix}{role}", shown[0], shown[1]))
        for name in {**one.metrics, **other.metrics}:
            values = [manifest.metrics.get(name) for manifest in (one, other)]
            if values[0] != values[1]:
                found.append(("number", f"{prefix}{name}", values[0], values[1]))
    return list(dict.fromkeys((what, name, _plain(a), _plain(b)) for what, name, a, b in found))


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | None) else str(value)


def _by_label(place: Path) -> dict[str, Stage]:
    if runs.stage_directory.exists(place):
        stage = runs.stage_directory.open_stage(place)
        return {stage.label: stage}
    return {stage.label: stage for stage in runs.stages_of(place)}
