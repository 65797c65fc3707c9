"""A sweep over byte targets: a quantize variant per target, scored if asked, as table rows and a picture."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pgolf.errors import PgolfError
from pgolf.store.records import QuantizeDetails, QuantizeMetrics, ScoreMetrics
from pgolf.store.stage_directory import Stage
from stages import quantize as quantizing
from stages.context import StageContext
from stages.eval_sliding import eval_sliding


@dataclass(frozen=True)
class Variant:
    """One target of the sweep. Bytes are those of files, bits per weight the coded model's."""

    stage: Stage
    target_bytes: int
    model_bytes: int
    total_bytes: int
    """The model plus the bytes reserved for the other counted files."""
    bits_per_weight: float
    score: Stage | None
    """Its eval-sliding stage."""

    @property
    def bits_per_byte(self) -> float | None:
        return None if self.score is None else self.score.manifest.metrics_as(ScoreMetrics)["bits_per_byte"]

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self) | {"bits_per_byte": self.bits_per_byte, "stage": str(self.stage.path)}
        return values | {"score": None if self.score is None else str(self.score.path)}


def sweep(
    context: StageContext, source: Stage, targets: Sequence[int], calibration: Path | None = None, score: bool = False
) -> list[Variant]:
    """Quantize `source` to every target as `quantize@TARGET`, after `--name NAME` as `quantize@NAME-TARGET`.

    score: also evaluate each with sliding windows, as `eval-sliding` of the same variant. A single target keeps the
    context's own name. Raises PgolfError for a target named twice.
    """
    if len(set(targets)) < len(targets):
        raise PgolfError(f"--target-bytes names a target twice: {', '.join(f'{target:,}' for target in targets)}")
    prefix = "" if context.name is None else f"{context.name}-"
    names = {context.name if len(targets) == 1 else f"{prefix}{target}": target for target in targets}
    variants = []
    for stage, (name, target) in zip(quantizing.sweep(context, source, names, calibration), names.items(), strict=True):
        scored = eval_sliding(context.replace(name=name), stage) if score else None
        variants.append(_variant(stage, target, scored))
    return variants


def _variant(stage: Stage, target: int, score: Stage | None) -> Variant:
    metrics, details = stage.manifest.metrics_as(QuantizeMetrics), stage.manifest.details_as(QuantizeDetails)
    model = metrics["model_bytes"]
    return Variant(
        stage=stage,
        target_bytes=target,
        model_bytes=model,
        total_bytes=model + sum(details["reserved_bytes"].values()),
        bits_per_weight=8 * model / metrics["parameters"],
        score=score,
    )


def show(context: StageContext, variants: Sequence[Variant]) -> None:
    """One table; the lowest score is marked."""
    scores = [variant.bits_per_byte for variant in variants if variant.bits_per_byte is not None]
    context.reporter.table(
        "byte targets",
        ("variant", "target", "model", "total", "bits per weight", "bits per byte"),
        [
            (
                variant.stage.label,
                f"{variant.target_bytes:,}",
                f"{variant.model_bytes:,}",
                f"{variant.total_bytes:,}",
                f"{variant.bits_per_weight:.3f}",
                "-"
                if variant.bits_per_byte is None
                else f"{variant.bits_per_byte:.4f}{' best' if variant.bits_per_byte == min(scores) else ''}",
            )
            for variant in variants
        ],
    )


def draw(variants: Sequence[Variant], picture: Path) -> None:
    """Write a PNG of bits per byte against total bytes; every variant must be scored."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    ordered = sorted(variants, key=lambda variant: variant.total_bytes)
    points = [(variant.total_bytes / 1000, variant.bits_per_byte) for variant in ordered]
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    axes.plot(*zip(*points, strict=True), marker="o", color="#1f4e79")
    for variant, point in zip(ordered, points, strict=True):
        axes.annotate(variant.stage.label.partition("@")[2], point, xytext=(4, 6), textcoords="offset points")
    axes.set_xlabel("kB that count (1000 bytes)")
    axes.set_ylabel("bits per byte")
    axes.grid(alpha=0.3)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=150)
    plt.close(figure)
