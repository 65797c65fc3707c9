"""Picture of the loss curve, saved with the weights."""

import json
from collections.abc import Sequence
from pathlib import Path


def draw(metrics: Path, picture: Path) -> None:
    """Draw the training loss of `metrics.jsonl` over tokens, with its running mean, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    text = metrics.read_text("utf-8") if metrics.is_file() else ""  # a run of no steps has none
    lines = [json.loads(line) for line in text.splitlines()]
    tokens, losses = [line["tokens"] for line in lines], [line["loss"] for line in lines]
    smooth = running_mean(losses)
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    marker = "o" if len(losses) == 1 else None  # a line needs two points
    axes.plot(tokens, losses, color="#9bb7d4", linewidth=0.8, marker=marker, label="loss")
    axes.plot(tokens, smooth, color="#1f4e79", linewidth=1.6, label="running mean")
    if losses:
        axes.set_ylim(*limits(losses))
    axes.set_xlabel("training tokens")
    axes.set_ylabel("nats per token")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture, dpi=120)
    plt.close(figure)


def running_mean(losses: Sequence[float], decay: float = 0.9) -> list[float]:
    """Exponential mean, normalized by the weights seen so far: the first losses have no lasting share in it."""
    smooth, total, weight = [], 0.0, 0.0
    for loss in losses:
        total, weight = decay * total + (1 - decay) * loss, decay * weight + (1 - decay)
        smooth.append(total / weight)
    return smooth


def limits(losses: Sequence[float]) -> tuple[float, float]:
    """The vertical axis: from below the lowest loss to above the loss after the first tenth of the run, so that
    the fall of the first steps does not squeeze the rest of the curve into a line."""
    bottom, top = min(losses), max(losses[len(losses) // 10 :])
    return bottom - 0.05 * (top - bottom) - 0.02, top + 0.05 * (top - bottom) + 0.02
