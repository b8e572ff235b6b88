"""Bars as SVG, written by hand: no background, and colours that can be read on light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

OURS, INK, PEER, LIMIT = "#e8710a", "#7b7f85", "#8d99a6", "#2f9e6e"
ALLOWED = "limit of the machine"
WIDTH, LEFT, RIGHT = 760, 62, 190  # of the drawing, and left of and behind its longest bar
BAR, STEP, GAP, TITLE, AXIS = 13, 17, 12, 28, 52  # heights: a bar, bar to bar, between groups, title, axis
STYLE = (
    f"text{{font:12px sans-serif;fill:{INK}}} .title{{font-weight:bold;font-size:13px}} "
    f".ours{{fill:{OURS};font-weight:bold}} .limit{{fill:{LIMIT}}}"
)


@dataclass(frozen=True)
class Group:
    """Bars that belong together: what each engine reaches, and what the machine allows, if that is shown."""

    values: Mapping[str, float]
    limit: float | None = None

    def bars(self) -> dict[str, float]:
        """Everything that is drawn."""
        return {**self.values, **({ALLOWED: self.limit} if self.limit else {})}


@dataclass(frozen=True)
class Panel:
    """Groups of bars over one axis."""

    title: str
    unit: str
    groups: Mapping[str, Group]


def chart(panels: Sequence[Panel]) -> str:
    """Panels below each other, each with groups of horizontal bars."""
    parts, top = [], 4
    for panel in panels:
        if panel.groups:
            drawing, height = _panel(panel, top)
            parts.append(drawing)
            top += height
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" role="img">'
    return "\n".join([head, f"<style>{STYLE}</style>", *parts, "</svg>", ""])


def _panel(panel: Panel, top: int) -> tuple[str, int]:
    """A panel and its height."""
    scale = (WIDTH - LEFT - RIGHT) / max(max(group.bars().values()) for group in panel.groups.values())
    bars, y = [], top + TITLE
    for name, group in panel.groups.items():
        bars += _bars(name, group, scale, y)
        y += len(group.bars()) * STEP + GAP
    words = [_text(0, top + 13, panel.title, "title"), _text(LEFT, y + 32, panel.unit)]
    axis = [_tick(value, scale, top + TITLE, y) for value in ticks((WIDTH - LEFT - RIGHT) / scale)]
    return "\n".join([*words, *axis, *bars]), y + AXIS - top


def _bars(name: str, group: Group, scale: float, y: int) -> list[str]:
    """A group: its name, and bars with name and value at their ends, a hollow one for the limit."""
    parts = [_text(LEFT - 8, y + len(group.bars()) * STEP // 2 + 2, name, anchor="end")]
    for place, (engine, value) in enumerate(group.bars().items()):
        kind, fill = {"gptrio": ("ours", OURS), ALLOWED: ("limit", "none")}.get(engine, ("", PEER))
        edge = f' stroke="{LIMIT}"' if fill == "none" else ""
        at, width = y + place * STEP, value * scale
        size = f'x="{LEFT}" y="{at}" width="{width:.1f}" height="{BAR}"'
        parts.append(f'<rect {size} rx="2" fill="{fill}"{edge}/>')
        parts.append(_text(LEFT + width + 6, at + BAR - 2, f"{engine} {value:,.0f}", kind))
    return parts


def _tick(value: float, scale: float, top: int, bottom: int) -> str:
    x = LEFT + value * scale
    return _line(x, top - 4, bottom, f'stroke="{INK}" stroke-opacity=".25"') + _text(
        x, bottom + 14, f"{value:,.0f}", anchor="middle"
    )


def _line(x: float, top: int, bottom: int, style: str) -> str:
    return f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}" {style}/>'


def _text(x: float, y: int, words: str, kind: str = "", anchor: str = "start") -> str:
    kind = f' class="{kind}"' if kind else ""
    return f'<text{kind} x="{x:.1f}" y="{y}" text-anchor="{anchor}">{escape(words)}</text>'


def ticks(most: float) -> list[float]:
    """Round numbers from 0 up to `most`: every 1, 2 or 5 of a power of ten, eight steps or fewer."""
    power = 10.0 ** math.floor(math.log10(most))
    step = next(step for step in (power / 5, power / 2, power, 2 * power) if most / step < 9)
    return [place * step for place in range(int(most / step) + 1)]
