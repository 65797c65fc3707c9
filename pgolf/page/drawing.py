"""Line charts and bars as inline SVG, in the page's own colors so that they follow light and dark.

The drawing is 360 units wide, about a phone's width, so that its text stays as large as the page's.
"""

import math
from collections.abc import Callable, Sequence
from html import escape

import numpy as np

from pgolf.page.html import COLORS

_WIDTH = 360.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 42.0, 10.0, 24.0, 34.0
_POINTS = 300  # of a line; more cannot be seen


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values inside an interval, about `count` of them."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def thin(x: np.ndarray, y: np.ndarray, points: int = _POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Means over equal stretches, at most `points` of them. x, y: (n,)."""
    if len(x) <= points:
        return x, y
    edges = np.linspace(0, len(x), points + 1).astype(int)
    sizes = np.diff(edges)
    return np.add.reduceat(x, edges[:-1]) / sizes, np.add.reduceat(y, edges[:-1]) / sizes


def lines(
    series: Sequence[tuple[str, np.ndarray, np.ndarray]],
    x_label: str,
    y_label: str,
    zero: bool = False,
    height: float = 230.0,
    show: Callable[[float], str] = lambda value: f"{value:,.6g}",
) -> str:
    """A line per (name, x, y) over shared axes; `zero` keeps y = 0 in sight and fills the first line down to it."""
    drawn = [(name, *thin(np.asarray(x, float), np.asarray(y, float))) for name, x, y in series]
    xs, ys = np.concatenate([x for _, x, _ in drawn]), np.concatenate([y for _, _, y in drawn])
    x_low, x_high = float(xs.min()), float(xs.max())
    y_low, y_high = _y_range(ys, zero)
    plot_right, plot_bottom = _WIDTH - _RIGHT, height - _BOTTOM

    def across(value: float) -> float:
        return _LEFT + (value - x_low) / ((x_high - x_low) or 1.0) * (plot_right - _LEFT)

    def down(value: float) -> float:
        return plot_bottom - (min(max(value, y_low), y_high) - y_low) / ((y_high - y_low) or 1.0) * (plot_bottom - _TOP)

    parts = [_open(height, f"{y_label} by {x_label}: {', '.join(name for name, _, _ in drawn)}")]
    for value in ticks(y_low, y_high):
        level = down(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{plot_right}" y1="{level:.1f}" y2="{level:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{level + 4:.1f}" text-anchor="end">{show(value)}</text>')
    for value in ticks(x_low, x_high, 4):
        parts.append(
            f'<text x="{across(value):.1f}" y="{plot_bottom + 15:.1f}" text-anchor="middle">{show(value)}</text>'
        )
    parts.append(f'<text x="{plot_right}" y="{height - 4:.1f}" text-anchor="end">{escape(x_label)}</text>')
    parts.append(f'<text x="0" y="11">{escape(y_label)}</text>')
    for index, (name, x, y) in enumerate(drawn):
        color = COLORS[index % len(COLORS)]
        path = " ".join(f"{across(a):.1f},{down(b):.1f}" for a, b in zip(x, y, strict=True))
        if zero and index == 0 and len(x) > 1:
            base = down(0.0)
            area = f"{across(x[0]):.1f},{base:.1f} {path} {across(x[-1]):.1f},{base:.1f}"
            parts.append(f'<polygon points="{area}" fill="{color}" fill-opacity=".15"/>')
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.8" stroke-linejoin="round">'
            f"<title>{escape(name)}</title></polyline>"
        )
    return "".join(parts) + "</svg>"


def _y_range(values: np.ndarray, zero: bool) -> tuple[float, float]:
    if zero:
        low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    else:
        # A loss curve falls steeply at first: the highest tenth would squeeze the rest into a line.
        low, high = float(values.min()), float(np.quantile(values, 0.97)) if len(values) > 30 else float(values.max())
    margin = 0.04 * ((high - low) or abs(high) or 1.0)
    return low - (0 if zero and low == 0 else margin), high + margin


def bars(rows: Sequence[tuple[str, float, str]], low: float = 0.0) -> str:
    """A bar per (name, value, label), starting at `low`."""
    height = 30.0 * len(rows) + 4
    high = max(value for _, value, _ in rows)
    label = 122.0
    room = _WIDTH - label - 56
    parts = [_open(height, ", ".join(f"{name} {shown}" for name, _, shown in rows))]
    for index, (name, value, shown) in enumerate(rows):
        y = 30.0 * index + 4
        width = max(2.0, (value - low) / ((high - low) or 1.0) * room)
        color = COLORS[index % len(COLORS)]
        parts.append(f'<text class="strong" x="{label - 8}" y="{y + 15}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect x="{label}" y="{y}" width="{width:.1f}" height="20" rx="4" fill="{color}"/>')
        parts.append(f'<text class="strong" x="{label + width + 6:.1f}" y="{y + 15}">{escape(shown)}</text>')
    return "".join(parts) + "</svg>"


def stacked(rows: Sequence[tuple[str, float]], cap: float = 0.0) -> str:
    """One bar cut into shares; with a cap, the room left is drawn as an outline."""
    total = max(sum(value for _, value in rows), cap)
    parts = [_open(38.0, ", ".join(f"{name} {value:,.0f}" for name, value in rows))]
    x = 0.0
    for index, (name, value) in enumerate(rows):
        width = value / (total or 1.0) * _WIDTH
        color = COLORS[index % len(COLORS)]
        parts.append(
            f'<rect x="{x:.2f}" y="4" width="{max(width - 1, 0.5):.2f}" height="30" fill="{color}">'
            f"<title>{escape(name)}: {value:,.0f}</title></rect>"
        )
        x += width
    if cap:
        parts.append(
            f'<rect x=".5" y="4" width="{cap / total * _WIDTH - 1:.2f}" height="30" fill="none" stroke="var(--soft)"/>'
        )
    return "".join(parts) + "</svg>"


def _open(height: float, label: str) -> str:
    return f'<svg viewBox="0 0 {_WIDTH:.0f} {height:.0f}" role="img" aria-label="{escape(label)}">'
