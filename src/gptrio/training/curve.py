"""The losses of a run as a drawing: in characters for a terminal, and as an SVG file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any
from xml.sax.saxutils import escape

Points = list[tuple[float, float]]
_EIGHTHS = " ▁▂▃▄▅▆▇█"
_COLOURS = {"training": "#2f6fb3", "evaluation": "#c4572b"}
_LEFT, _TOP, _WIDTH, _HEIGHT = 56, 34, 560, 250  # of the SVG's axes, in pixels


def losses(history: Sequence[Mapping[str, Any]]) -> dict[str, Points]:
    """Finite (step, loss) of training and of evaluation in a `log_history`; a side without any is left out."""
    sides = {"training": "loss", "evaluation": "eval_loss"}
    found = {
        side: [(entry["step"], entry[key]) for entry in history if math.isfinite(entry.get(key, math.nan))]
        for side, key in sides.items()
    }
    return {side: points for side, points in found.items() if points}


def draw_text(history: Sequence[Mapping[str, Any]], width: int = 60, height: int = 8) -> str:
    """The training losses as columns of characters, with the scale on the left; "" for fewer than two of them.

    Args:
        history: `TrainerState.log_history`.
        width: most columns.
        height: lines.
    """
    points = losses(history).get("training", [])
    if len(points) < 2:
        return ""
    columns = min(width, len(points))
    edges = [round(column * len(points) / columns) for column in range(columns + 1)]
    means = [sum(loss for _, loss in points[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    filled = [1 + round((mean - low) / ((high - low) or 1) * (8 * height - 1)) for mean in means]
    lines = []
    for line in reversed(range(height)):
        label = f"{high:8.3f}" if line == height - 1 else f"{low:8.3f}" if line == 0 else " " * 8
        lines.append(f"{label} ┤" + "".join(_EIGHTHS[max(0, min(8, eighths - 8 * line))] for eighths in filled))
    first, last = str(points[0][0]), f"{points[-1][0]} updates"
    return "\n".join([*lines, " " * 10 + first + last.rjust(max(columns - len(first), len(last) + 1))])


def draw_svg(history: Sequence[Mapping[str, Any]], title: str) -> str:
    """The losses of training and evaluation over updates as an SVG document.

    Args:
        history: `TrainerState.log_history`.
        title: above the drawing.
    """
    sides = losses(history)
    every = [point for points in sides.values() for point in points] or [(0, 0.0)]
    steps, low, high = max(step for step, _ in every) or 1, min(y for _, y in every), max(y for _, y in every)

    def place(step: float, loss: float) -> tuple[float, float]:
        return _LEFT + _WIDTH * step / steps, _TOP + _HEIGHT * (high - loss) / ((high - low) or 1)

    parts = [_text(_LEFT, 20, title, "start", 14), *_axes(steps, low, high)]
    for row, (side, points) in enumerate(sides.items()):
        line = " ".join("{:.1f},{:.1f}".format(*place(*point)) for point in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{_COLOURS[side]}" stroke-width="2"/>')
        parts.append(_text(_LEFT + _WIDTH, _TOP + 14 + 16 * row, side, "end", 12, _COLOURS[side]))
    size = f'width="{_LEFT + _WIDTH + 24}" height="{_TOP + _HEIGHT + 46}"'
    return "\n".join(
        [f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif">', *parts, "</svg>", ""]
    )


def _axes(steps: float, low: float, high: float) -> list[str]:
    bottom, right = _TOP + _HEIGHT, _LEFT + _WIDTH
    parts = [f'<path d="M{_LEFT},{_TOP}V{bottom}H{right}" fill="none" stroke="#888"/>']
    for share in (0, 0.25, 0.5, 0.75, 1):
        parts.append(_text(_LEFT + _WIDTH * share, bottom + 18, f"{steps * share:.0f}", "middle", 11))
        parts.append(_text(_LEFT - 6, bottom - _HEIGHT * share + 4, f"{low + (high - low) * share:.3f}", "end", 11))
    return [*parts, _text(_LEFT + _WIDTH / 2, bottom + 38, "updates", "middle", 12)]


def _text(x: float, y: float, text: str, anchor: str, size: int, colour: str = "#333") -> str:
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}">{escape(text)}</text>'
    )
