"""The loss curve as a picture beside the weights."""

import json
from pathlib import Path


def draw(metrics: Path, picture: Path) -> None:
    """Draw the training loss of `metrics.jsonl` over tokens, with its running mean, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = [json.loads(text) for text in metrics.read_text("utf-8").splitlines()]
    tokens, losses = [line["tokens"] for line in lines], [line["loss"] for line in lines]
    smooth, mean = [], None
    for loss in losses:
        mean = loss if mean is None else 0.95 * mean + 0.05 * loss
        smooth.append(mean)
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    axes.plot(tokens, losses, color="#9bb7d4", linewidth=0.8, label="loss")
    axes.plot(tokens, smooth, color="#1f4e79", linewidth=1.6, label="running mean")
    if losses:
        # The first losses would squeeze the rest of the curve into a line.
        bottom, top = min(smooth), sorted(smooth)[int(0.95 * (len(smooth) - 1))]
        axes.set_ylim(bottom - 0.1 * (top - bottom) - 0.02, top + 0.2 * (top - bottom) + 0.02)
    axes.set_xlabel("training tokens")
    axes.set_ylabel("nats per token")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture, dpi=120)
    plt.close(figure)
