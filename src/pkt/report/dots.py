"""Dots with intervals as one `<svg>` element: a row each, reference lines across."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle

from matplotlib.axes import Axes

from pkt.report.heatmap import CHARACTER, WIDTH
from pkt.report.numbers import decimals, plain
from pkt.report.svg import ARM_COLOURS, HEAT, INK, MUTED, drawing, new_figure, to_svg

COLOURS = (ARM_COLOURS[2], ARM_COLOURS[4], ARM_COLOURS[3], ARM_COLOURS[5], ARM_COLOURS[6], ARM_COLOURS[1])
"""Of the groups, in their order."""
LINES = ((INK, (4, 2)), (HEAT, (1, 1.5)), (MUTED, (6, 2, 1, 2)), (INK, (1, 1)), (HEAT, (5, 3)), (MUTED, (2, 2)))
"""Colours and dashes of reference lines."""
MOST = 36
"""Characters of a row's name."""


@dataclass(frozen=True)
class Dot:
    """One row."""

    label: str
    value: float
    low: float | None = None
    """Ends of the interval; None where there is none."""
    high: float | None = None
    group: str = ""
    """Heading under which the row stands."""


def dots(rows: Sequence[Dot], *, xlabel: str, references: Mapping[str, float], name: str, label: str) -> str:
    """The rows from top to bottom, their numbers on the right; a panel per group, on one axis.

    Args:
        references: dashed lines across all rows, by what they stand for: `{"chance": 0.1}`.
        name: unique on the page; every id starts with it.
        label: what a screen reader says.
    """
    assert rows
    groups: dict[str, list[Dot]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    low, high = _limits(rows, list(references.values()))
    places = decimals(max(abs(low), abs(high))) + 1
    named = {f"{_short(what)} ({plain(value, places)})": value for what, value in references.items()}
    across = max(1, int((WIDTH - 20) / (CHARACTER * max(map(len, named), default=1) + 56)))
    with drawing():
        titled = sum(bool(group) for group in groups)
        figure = new_figure(WIDTH, 60 + 25 * len(rows) + 34 * titled + 14 * len(groups) + 20 * -(-len(named) // across))
        heights = [len(group) + 0.3 for group in groups.values()]
        panels = figure.subplots(len(groups), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        for ax, (title, group), colour in zip(panels, groups.items(), cycle(COLOURS), strict=False):
            for (what, value), (ink, dashes) in zip(named.items(), cycle(LINES), strict=False):
                ax.axvline(value, color=ink, linewidth=1.4, dashes=dashes, label=what, zorder=1)
            _rows(ax, group, colour, places)
            ax.set_title(title if len(title) <= 90 else title[:89] + "…")
            ax.set_xlim(low, high)
        for ax in panels[:-1]:
            ax.tick_params(axis="x", length=0)
            ax.spines["bottom"].set_visible(False)
        panels[-1].set_xlabel(xlabel)
        if named:
            figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=across)
        return to_svg(figure, name, label)


def _rows(ax: Axes, rows: Sequence[Dot], colour: str, places: int) -> None:
    for y, row in enumerate(rows):
        text = plain(row.value, places)
        if row.low is not None and row.high is not None:
            ax.plot([row.low, row.high], [y, y], color=colour, linewidth=2.4, marker="|", markersize=8)
            text += f" [{plain(row.low, places)}, {plain(row.high, places)}]"
        ax.plot(row.value, y, "o", color=colour, markersize=7)
        ax.text(1.01, y, text, transform=ax.get_yaxis_transform(), va="center", fontsize=11)
    ax.set_yticks(range(len(rows)), [_short(row.label) for row in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)


def _limits(rows: Sequence[Dot], references: Sequence[float]) -> tuple[float, float]:
    """Room for every dot, interval and reference."""
    held = [value for row in rows for value in (row.value, row.low, row.high) if value is not None]
    low, high = min([*held, *references]), max([*held, *references])
    room = 0.05 * (high - low) or 0.05 * abs(high) or 0.05
    return low - room, high + room


def _short(name: str) -> str:
    return name if len(name) <= MOST else name[: MOST - 1] + "…"
