"""Heat maps side by side as one `<svg>` element: colours of the page, numbers in the cells where they fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path

from pkt.report.numbers import decimals, finite, plain
from pkt.report.svg import ARM_COLOURS, GRID, HEAT, INK, MUTED, drawing, new_figure, to_svg

WIDTH = 800
"""Of the page's column, in CSS pixels."""
COLD = ARM_COLOURS[2]
"""Below zero, on a scale of two colours."""
LEVELS = 40
"""Shades of a colour. Cells of one shade are one path, which keeps large maps small."""
CHARACTER = 7.2
"""Width of a character of the labels, in CSS pixels, in a wide font."""
NARROW = 5.9
"""The same for the names of axes, which are smaller and have room at their ends."""
MOST = 16
"""Characters of a row's or column's name."""
TALL, WIDE = 21, 72
"""Height of a cell with a number, and the most that one is wide."""
BAR = (60, 130)
"""The least and the most that a scale is long."""
FOOT = 30
"""Height of a scale with its numbers."""


@dataclass(frozen=True)
class Panel:
    """One heat map. Row 0 is at the bottom."""

    title: str
    values: list[list[float | None]]
    """By row and column; None where there is no number."""
    rows: list[str]
    columns: list[str]
    xlabel: str
    ylabel: str
    marks: frozenset[tuple[int, int]] = frozenset()
    """Framed cells, as (row, column)."""
    low: float = 0
    """Where the colour starts. Below zero: a colour for each sign, both from 0."""
    high: float = 1
    """Where the colour is full."""
    show: Callable[[float], str] | None = None
    """How a number is written; None: with as many decimals as the scale needs."""

    def text(self, value: float) -> str:
        """A number as its cell shows it."""
        return self.show(value) if self.show else plain(value, decimals(max(abs(self.low), abs(self.high))))

    def colour(self, value: float) -> tuple[str, int]:
        """Colour and shade, from 0 to `LEVELS`, of a number; beyond the scale it is that of the scale's end."""
        if self.low < 0:
            share = abs(value) / max(-self.low, self.high)
        else:
            share = (value - self.low) / ((self.high - self.low) or 1)
        return COLD if self.low < 0 and value < 0 else HEAT, round(LEVELS * min(max(share, 0.0), 1.0))


@dataclass(frozen=True)
class _Layout:
    """Sizes in CSS pixels, the same for every panel of a figure."""

    across: int
    """Panels side by side."""
    cell: float
    tall: float
    numbers: bool
    side: float
    """Left of the cells: names of rows."""
    under: float
    """Below the cells: names of columns, and the panel's own scale."""
    slot: float
    """From a panel's left to the next one's."""
    titles: list[list[str]]
    """The lines of each title."""
    turned: bool
    """Names of columns are written aslant."""
    own: bool
    """Every panel has a scale of its own."""


def heatmaps(panels: Sequence[Panel], name: str, label: str) -> str:
    """The panels as small multiples that wrap, with the scale of their colours.

    Args:
        name: unique on the page; every id starts with it.
        label: what a screen reader says.
    """
    assert panels
    plan = _plan(panels)
    grid = [list(range(i, min(i + plan.across, len(panels)))) for i in range(0, len(panels), plan.across)]
    over = 18 * max(map(len, plan.titles)) + 8
    heights = [over + plan.tall * max(len(panels[i].rows) for i in row) + plan.under for row in grid]
    width, height = plan.slot * plan.across, sum(heights) + (0 if plan.own else FOOT)
    with drawing():
        figure = new_figure(width, height)
        figure.set_layout_engine("none")
        top = height
        for row, whole in zip(grid, heights, strict=True):
            for x, i in enumerate(row):
                panel, left = panels[i], plan.slot * x + plan.side
                size = (plan.cell * len(panel.columns), plan.tall * len(panel.rows))
                ax = _axes(figure, left, top - over - size[1], *size)
                _draw(ax, panel, plan)
                ax.set_title("\n".join(plan.titles[i]), loc="left", x=-(plan.side - 4) / size[0])
                if plan.own:
                    _scale(figure, panel, left, top - over - size[1] - plan.under + FOOT, plan)
            top -= whole
        if not plan.own:
            _scale(figure, panels[0], plan.side, FOOT, plan)
        return to_svg(figure, name, label)


def _plan(panels: Sequence[Panel]) -> _Layout:
    """As many panels side by side as leave room for the numbers, or where even one has none, for cells that can be seen."""
    columns = max(len(panel.columns) for panel in panels)
    rows = max(len(panel.rows) for panel in panels)
    names = max(len(_short(name)) for panel in panels for name in panel.columns)
    beside = CHARACTER * max(len(_short(name)) for panel in panels for name in panel.rows) + 30
    texts = [panel.text(v) for panel in panels for row in panel.values for v in row if finite(v)]
    room = 5.8 * max(map(len, texts), default=1) + 4
    numbers, cell, across, turned, side = False, 0.0, 1, False, beside
    for least, across in [*((room, n) for n in (4, 3, 2, 1)), (7, 3), (7, 2), (0, 1)]:
        if across > len(panels):
            continue
        side = beside
        for _ in range(2):  # names aslant need room on the left, which makes cells narrower
            cell = min(WIDE, (WIDTH / across - side - 14) / columns)
            turned = CHARACTER * names + 4 > cell and not all(_is_number(n) for p in panels for n in p.columns)
            side = max(beside, 0.71 * CHARACTER * names - cell / 2 + 8) if turned else beside
        cell = min(WIDE, (WIDTH / across - side - 14) / columns)
        numbers = least == room
        if cell >= least and (across == 1 or WIDTH / across - side - 14 >= BAR[0]):
            break
    tall = TALL if numbers else min(18.0, max(cell, 9.0 if rows > 30 else 12.0))
    tall = min(38.0, max(tall, NARROW * max(len(panel.ylabel) for panel in panels) / rows))
    low = any(tall * len(panel.rows) < NARROW * len(panel.ylabel) for panel in panels)
    own = len({(panel.low, panel.high) for panel in panels}) > 1
    most = max(len(panel.title) for panel in panels)
    slot = max(side + max(cell * columns, BAR[0]) + 14, min(WIDTH / across, CHARACTER * most + 12, 360))
    return _Layout(
        across=across,
        cell=cell,
        tall=tall,
        numbers=numbers,
        side=side,
        under=(0.71 * CHARACTER * names + 14 if turned else 20) + 24 + low * 14 + (FOOT if own else 0),
        slot=slot,
        titles=[_lines(panel.title, int((slot - 12) / (CHARACTER + 0.6))) for panel in panels],
        turned=turned,
        own=own,
    )


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place in CSS pixels."""
    across, up = (72 * inches for inches in figure.get_size_inches())
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def _draw(ax: Axes, panel: Panel, plan: _Layout) -> None:
    assert len(panel.values) == len(panel.rows)
    assert all(len(row) == len(panel.columns) for row in panel.values)
    cells = [(x, y, v) for y, row in enumerate(panel.values) for x, v in enumerate(row)]
    _fill(ax, [(x - 0.5, y - 0.5, 1.0, *panel.colour(v)) for x, y, v in cells if finite(v)], _most(plan))
    empty = [(x, y) for x, y, v in cells if not finite(v)]
    ax.plot(
        [x for x, _ in empty], [y for _, y in empty], "_", color=MUTED, markersize=min(5, plan.cell / 2), clip_on=False
    )
    if plan.numbers:
        for x, y, value in cells:
            if finite(value):
                ax.text(x, y, panel.text(value), ha="center", va="center_baseline", fontsize=10)
    thick = 1.9 if plan.cell > 14 else 1.4
    for y, x in sorted(panel.marks):
        inset_x, inset_y = thick / 2 / plan.cell, thick / 2 / plan.tall
        place, size = (x - 0.5 + inset_x, y - 0.5 + inset_y), (1 - 2 * inset_x, 1 - 2 * inset_y)
        ax.add_patch(Rectangle(place, *size, facecolor="none", edgecolor=INK, linewidth=thick, zorder=3))
    ax.set_xlim(-0.5, len(panel.columns) - 0.5)
    ax.set_ylim(-0.5, len(panel.rows) - 0.5)
    every = 1 if plan.turned else _every(panel.columns, plan.cell, CHARACTER * max(map(len, panel.columns)) + 4)
    kept = range(0, len(panel.columns), every)
    turn: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if plan.turned else {}
    ax.set_xticks(kept, [_short(panel.columns[i]) for i in kept], fontsize=11, **turn)
    kept = range(0, len(panel.rows), _every(panel.rows, plan.tall, 12))
    ax.set_yticks(kept, [_short(panel.rows[i]) for i in kept], fontsize=11)
    ax.tick_params(length=0, pad=4)
    fits = plan.tall * len(panel.rows) >= NARROW * len(panel.ylabel)
    under = [panel.xlabel] if fits else [f"across: {panel.xlabel}", f"up: {panel.ylabel}"]
    most = int((plan.slot - 14) / NARROW)
    ax.set_xlabel("\n".join(_short(line, most) for line in under), fontsize=11, labelpad=2)
    ax.set_ylabel(panel.ylabel if fits else "", fontsize=11, labelpad=3)
    for spine in ax.spines.values():
        spine.set(visible=True, color=GRID)


def _fill(ax: Axes, cells: Sequence[tuple[float, float, float, str, int]], most: float) -> None:
    """Coloured cells (x, y, width, colour, shade), one path for each colour and shade."""
    for colour, shade in dict.fromkeys((colour, shade) for *_, colour, shade in cells):
        corners, codes = [], []
        for x, y, width, *look in cells:
            if look == [colour, shade]:
                corners += [(x, y), (x + width, y), (x + width, y + 1), (x, y + 1), (x, y)]
                codes += [Path.MOVETO, *3 * [Path.LINETO], Path.CLOSEPOLY]
        alpha = 0.03 + (most - 0.03) * shade / LEVELS
        ax.add_patch(PathPatch(Path(corners, codes), facecolor=(colour, alpha), edgecolor="none", antialiased=False))


def _most(plan: _Layout) -> float:
    """How opaque the fullest colour is: half where numbers must stay readable on it, on light and dark ground."""
    return 0.54 if plan.numbers else 0.95


def _scale(figure: Figure, panel: Panel, left: float, top: float, plan: _Layout) -> None:
    """The colours from low to high with the numbers at their ends, and zero where there are two colours."""
    low = panel.low if panel.low >= 0 else -max(-panel.low, panel.high)
    high = panel.high if panel.low >= 0 else -low
    long = min(BAR[1], max(BAR[0], round(plan.slot - plan.side - 14)))
    ax = _axes(figure, round(left), top - 10, long, 10)
    step = (high - low) / 26
    steps = [low + step * i for i in range(26)]
    _fill(ax, [(value, 0.0, step, *panel.colour(value + step / 2)) for value in steps], _most(plan))
    ax.set_xlim(low, high)
    ax.set_ylim(0, 1)
    ticks = [low, 0.0, high] if low < 0 and long == BAR[1] else [low, high]
    ax.set_xticks(ticks, [panel.text(value) for value in ticks], fontsize=11)
    ax.set_yticks([])
    ax.tick_params(length=0, pad=3)
    for spine in ax.spines.values():
        spine.set(visible=True, color=GRID)


def _lines(title: str, width: int) -> list[str]:
    """A title in at most two lines."""
    lines = wrap(title, width)
    return lines if len(lines) <= 2 else [lines[0], _short(" ".join(lines[1:]), width)]


def _every(names: Sequence[str], step: float, needed: float) -> int:
    """Which names are shown: every n-th, so that neighbours do not touch."""
    return min(max(1, math.ceil(needed / step)), len(names))


def _is_number(name: str) -> bool:
    return name.lstrip("−-").replace(".", "", 1).isdigit()


def _short(name: str, most: int = MOST) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
