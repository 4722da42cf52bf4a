"""Drawing of scores against a cost on a logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from pkt.report.plots import SOURCE, TARGET, WIDTH, short
from pkt.report.svg import ARM_COLOURS, HEAT, INK, MUTED, drawing, new_figure, to_svg

if TYPE_CHECKING:
    from pkt.report.frontier import Point

COLOURS = (*ARM_COLOURS[2:], INK)
DASHES: tuple[Any, ...] = ("solid", (0, (5, 2)), (0, (1, 1.5)))
"""Line styles that tell apart what has the same colour."""
MARKERS: dict[str, dict[str, Any]] = {
    "transfer": {"marker": "o", "markersize": 9},
    "tuning": {"marker": "o", "markersize": 9, "markerfacecolor": "none"},
    "other": {"marker": "D", "markersize": 7, "markerfacecolor": "none"},
    "none": {"marker": "o", "markersize": 4.5},
}
MEANING = {"transfer": "transfer", "tuning": "tuning", "other": "no effect or undecided", "none": "no certificate"}


class Scale:
    """A logarithmic axis to base 2 or 10 with room for zero on its left."""

    def __init__(self, values: Sequence[float], base: float) -> None:
        self.base = base
        logs = [math.log(value, base) for value in values if value > 0]
        self.low, self.high = (min(logs), max(logs)) if logs else (0.0, 0.0)
        self.has_zero = min(values) <= 0
        self.zero = self.low - max(0.12 * (self.high - self.low), 0.5)

    def at(self, value: float) -> float:
        """Where a value stands."""
        return math.log(value, self.base) if value > 0 else self.zero

    def limits(self) -> tuple[float, float]:
        """With some room on both sides."""
        left = self.zero if self.has_zero else self.low
        room = max(0.05 * (self.high - left), 0.15)
        return left - room, self.high + room


def draw(
    points: Sequence[Point],
    lines: Mapping[str, float | None],
    chance: float | None,
    cost: str,
    name: str,
    label: str,
) -> str:
    """The picture as an `<svg>` element.

    Where the source is so far above that the points would be one line, a second panel shows them closer, without it.

    Args:
        lines: scores of `target` and `source`. cost: `FLOP` (base 10) or `labels` (base 2).
    """
    scale = Scale([point.cost for point in points], 10 if cost == "FLOP" else 2)
    series = list(dict.fromkeys(point.series for point in points))
    near = [value for point in points for value in _bar(point)] + [v for v in (lines["target"],) if v is not None]
    source = lines["source"]
    far = source is not None and source - max(near) > max(near) - min(near)
    tall = max(300, 26 * len(series) + 60)
    with drawing():
        figure = new_figure(WIDTH, tall + 70 + (210 if far else 0))
        panels = figure.subplots(1 + far, squeeze=False, height_ratios=(180, tall) if far else (1,))[:, 0]
        for ax in panels:
            _levels(ax, lines, chance, with_source=ax is panels[0])
            for i, one in enumerate(series):
                _series(ax, [p for p in points if p.series == one], scale, i)
            ax.set_xlim(*scale.limits())
            ax.margins(y=0.08)
            ax.set_ylabel("score")
            ax.grid(axis="y")
            _ticks(ax, scale, [point.cost for point in points], cost)
        if far:
            panels[1].set_title("the same, closer")
        panels[-1].set_xlabel(f"{cost} (logarithmic)")
        _names(panels[-1], points, series, scale)
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend([*handles, *_marks(points)], [*names, *_mark_names(points)], loc="outside upper left", ncols=4)
        return to_svg(figure, name, label)


def _bar(point: Point) -> tuple[float, float]:
    error = point.error or 0
    return point.score - error, point.score + error


def _levels(ax: Axes, lines: Mapping[str, float | None], chance: float | None, *, with_source: bool) -> None:
    target, source = lines["target"], lines["source"]
    if target is not None:
        ax.axhline(target, color=TARGET, linewidth=1.8, dashes=(4, 2), label=f"target ({target:.3f})")
    if source is not None and with_source:
        ax.axhline(source, color=SOURCE, linewidth=1.8, dashes=(1, 1.5), label=f"source ({source:.3f})")
    if chance is not None:
        ax.axhline(chance, color=MUTED, linewidth=0.8, label=f"chance ({chance:.3f})")


def _series(ax: Axes, points: Sequence[Point], scale: Scale, number: int) -> None:
    """One recipe: its line, bars and marks."""
    colour, dashes = _look(number)
    points = sorted(points, key=lambda p: (p.cost, p.score))
    at = [scale.at(p.cost) for p in points]
    ax.plot(at, [p.score for p in points], color=colour, linewidth=1.4, linestyle=dashes)
    errors = [p.error or 0 for p in points]
    ax.errorbar(at, [p.score for p in points], errors, fmt="none", color=colour, elinewidth=1, capsize=2.5, alpha=0.6)
    for x, point in zip(at, points, strict=True):
        ax.plot(x, point.score, color=colour, linestyle="none", markeredgewidth=1.6, **MARKERS[point.mark])
        if point.harm:
            ax.plot(x, point.score, "x", color=HEAT, markersize=11, markeredgewidth=2.2)


def _look(number: int) -> tuple[str, Any]:
    return COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]


def _names(ax: Axes, points: Sequence[Point], series: Sequence[str], scale: Scale) -> None:
    """The recipes beside the right ends of their lines, moved apart where they would overlap."""
    low, high = ax.get_ylim()
    ends = []
    for i, one in enumerate(series):
        last = max((p for p in points if p.series == one), key=lambda p: (p.cost, p.score))
        ends.append((last.score, scale.at(last.cost), i))
    ends.sort()
    heights = apart([(score - low) / (high - low) for score, _, _ in ends], 0.9 / max(len(ends), 12))
    for height, (score, x, i) in zip(heights, ends, strict=True):
        colour, dashes = _look(i)
        ax.annotate(
            short(series[i], 26), (x, score), (1.02, height), textcoords="axes fraction", va="center", color=colour,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.7, "alpha": 0.55, "linestyle": dashes, "relpos": (0, 0.5)},
        )  # fmt: skip


def apart(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending heights in [0, 1], moved as little as keeps neighbours `gap` apart."""
    found = list(heights)
    for i in range(1, len(found)):
        found[i] = max(found[i], found[i - 1] + gap)
    ceiling = 1.0
    for i in reversed(range(len(found))):
        found[i] = min(found[i], ceiling)
        ceiling = found[i] - gap
    return found


def _ticks(ax: Axes, scale: Scale, values: Sequence[float], cost: str) -> None:
    """Labels at the budgets that were run; operations at round numbers."""
    if cost == "labels":
        marks = sorted(set(values))
        wide = (scale.high - (scale.zero if scale.has_zero else scale.low)) / 14
        kept: list[float] = []
        for value in marks:
            if not kept or scale.at(value) - scale.at(kept[-1]) > wide:
                kept.append(value)
    else:
        kept = ([0.0] if scale.has_zero else []) + round_numbers(scale.low, scale.high)
    ax.set_xticks([scale.at(v) for v in kept], [f"{v:g}".replace("e+", "e") for v in kept])


def round_numbers(low: float, high: float) -> list[float]:
    """Powers of ten from 10**low to 10**high, or 1, 2, 5 times such where they are few."""
    powers = range(math.floor(low - 0.2), math.ceil(high + 0.2) + 1)
    steps = (1, 2, 5) if high - low < 2.5 else (1,)
    every = max(1, math.ceil((high - low) / 8))
    found = [factor * 10.0**power for power in powers if power % every == 0 for factor in steps]
    return [value for value in found if low - 0.2 <= math.log10(value) <= high + 0.2]


def _marks(points: Sequence[Point]) -> list[Line2D]:
    """Handles of the marks that occur."""
    kinds = [kind for kind in MARKERS if any(p.mark == kind for p in points)]
    found = [Line2D([], [], color=INK, linestyle="none", markeredgewidth=1.6, **MARKERS[kind]) for kind in kinds]
    if any(p.harm for p in points):
        found.append(Line2D([], [], color=HEAT, linestyle="none", marker="x", markersize=10, markeredgewidth=2.2))
    return found


def _mark_names(points: Sequence[Point]) -> list[str]:
    kinds = [MEANING[kind] for kind in MARKERS if any(p.mark == kind for p in points)]
    return [*kinds, *(["harm"] if any(p.harm for p in points) else [])]
