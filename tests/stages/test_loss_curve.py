"""The loss curve shows the whole loss, but for the fall of the first steps."""

import json
import math
from pathlib import Path

import pytest

from stages.reports import loss_curve


def falling(count: int) -> list[float]:
    """A loss as training has it: from 10 quickly down to 5, then slowly to 3.7."""
    return [3.7 + 6.3 * math.exp(-step / 4) + 1.3 * math.exp(-step / count * 4) for step in range(count)]


@pytest.mark.parametrize("count", [3, 10, 200])
def test_the_end_of_the_curve_is_in_the_picture(count: int) -> None:
    losses = falling(count)
    bottom, top = loss_curve.limits(losses)
    shown = losses[count // 10 :]
    assert all(bottom < loss < top for loss in shown)
    assert top - bottom < 1.2 * (max(shown) - min(shown)) + 0.1  # and fills it


def test_a_single_loss_has_room_around_it() -> None:
    bottom, top = loss_curve.limits([4.2])
    assert bottom < 4.2 < top


def test_the_mean_follows_the_loss() -> None:
    losses = falling(200)
    smooth = loss_curve.running_mean(losses)
    assert smooth[0] == losses[0]
    assert smooth[-1] == pytest.approx(losses[-1], abs=0.1)  # 0.95 unnormalized was more than a nat above it
    assert loss_curve.running_mean([2.0] * 5) == pytest.approx([2.0] * 5)


@pytest.mark.parametrize("count", [0, 1, 30])
def test_it_draws_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    kept: list = []
    monkeypatch.setattr(plt, "close", kept.append)
    lines = [json.dumps({"tokens": 100 * step, "loss": loss}) for step, loss in enumerate(falling(count))]
    if count:
        (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    loss_curve.draw(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    axes = kept[0].axes[0]
    drawn = axes.lines[0]
    assert len(drawn.get_xdata()) == count
    if count:
        bottom, top = axes.get_ylim()
        assert bottom < drawn.get_ydata()[-1] < top
    assert drawn.get_marker() == ("o" if count == 1 else "None")
