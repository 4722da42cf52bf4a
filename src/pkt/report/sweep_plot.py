"""Drawing of a sweep: score and loss along one axis, a line for each setting of the others."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Any

from matplotlib.axes import Axes

from pkt.report.frontier_plot import COLOURS, DASHES, Scale
from pkt.report.plots import TARGET, WIDTH, short
from pkt.report.svg import MUTED, drawing, new_figure, to_svg

LOG_RANGE = 4
"""Values that are spaced by factors get a logarithmic axis where the largest is so many times the smallest."""


@dataclass(frozen=True)
class Mark:
    """One point of a line: where on the axis, its value, and the band around it."""

    at: Any
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """What varies along the axis while all else stays."""

    label: str
    marks: list[Mark]


@dataclass(frozen=True)
class Panel:
    """One quantity along the axis."""

    title: str
    lines: list[Line]
    levels: dict[str, float]
    """Dashed lines: of the target, for example."""


@dataclass(frozen=True)
class AxisScale:
    """Where the values of an axis stand."""

    place: Callable[[Any], float]
    limits: tuple[float, float]
    is_log: bool = False


def axis_scale(values: Sequence[Any]) -> AxisScale:
    """Numbers on a line, logarithmic where they are spaced by factors, with room for zero; anything else side by side."""
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values) or len(values) < 2:
        places = {repr(value): float(i) for i, value in enumerate(values)}
        return AxisScale(lambda value: places[repr(value)], (-0.4, len(values) - 0.6))
    if is_log(values):
        base = 2 if all(math.log2(value).is_integer() for value in values if value > 0) else 10
        scale = Scale(list(values), base)
        return AxisScale(scale.at, scale.limits(), is_log=True)
    room = 0.06 * (max(values) - min(values))
    return AxisScale(float, (min(values) - room, max(values) + room))


def is_log(values: Sequence[float]) -> bool:
    """Whether values above zero are spaced more evenly by factors than by steps."""
    above = sorted(value for value in values if value > 0)
    if min(values) < 0 or len(above) < 3 or above[-1] < LOG_RANGE * above[0]:
        return False
    steps = [two - one for one, two in itertools.pairwise(above)]
    factors = [math.log(two / one) for one, two in itertools.pairwise(above)]
    return pstdev(factors) / fmean(factors) < pstdev(steps) / fmean(steps)


def draw(panels: Sequence[Panel], values: Sequence[Any], axis: str, name: str, label: str) -> str:
    """The picture as an `<svg>` element.

    Args:
        values: of the axis, in its order.
    """
    scale = axis_scale(values)
    labels = [line.label for line in panels[0].lines if line.label]
    rows = math.ceil((len(labels) + len(panels[0].levels)) / 3)
    with drawing():
        figure = new_figure(WIDTH, 230 * len(panels) + 40 + 18 * rows)
        axes = figure.subplots(len(panels), squeeze=False)[:, 0]
        for ax, panel in zip(axes, panels, strict=True):
            _panel(ax, panel, scale)
            _ticks(ax, values, scale)
        axes[-1].set_xlabel(f"{axis} (logarithmic)" if scale.is_log else axis)
        handles, names = axes[0].get_legend_handles_labels()
        if names:
            figure.legend(handles, names, loc="outside upper left", ncols=3)
        return to_svg(figure, name, label)


def _panel(ax: Axes, panel: Panel, scale: AxisScale) -> None:
    for i, (level, value) in enumerate(panel.levels.items()):
        colour, dashes = (TARGET, (4, 2)) if i == 0 else (MUTED, (1, 1.5))
        ax.axhline(value, color=colour, linewidth=1.6, dashes=dashes, label=f"{level} ({value:.3f})")
    for i, line in enumerate(panel.lines):
        colour, dashes = COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)]
        at = [scale.place(mark.at) for mark in line.marks]
        ax.plot(
            at,
            [mark.value for mark in line.marks],
            color=colour,
            linestyle=dashes,
            linewidth=1.6,
            marker="o",
            markersize=5,
            label=short(line.label, 34) or None,
        )
        low, high = [mark.low for mark in line.marks], [mark.high for mark in line.marks]
        ax.fill_between(at, low, high, color=colour, alpha=0.14, linewidth=0)
        if len(at) == 1:
            ax.vlines(at, low, high, color=colour, linewidth=1)
    ax.set_xlim(*scale.limits)
    ax.margins(y=0.1)
    ax.set_title(panel.title)
    ax.grid(axis="y")


def _ticks(ax: Axes, values: Sequence[Any], scale: AxisScale) -> None:
    """The values that were run, as far as their names have room."""
    wide = (scale.limits[1] - scale.limits[0]) / 16
    kept: list[Any] = []
    for value in sorted(values, key=scale.place):
        if not kept or scale.place(value) - scale.place(kept[-1]) > wide:
            kept.append(value)
    texts = [f"{v:g}" if isinstance(v, int | float) and not isinstance(v, bool) else named(v) for v in kept]
    ax.set_xticks([scale.place(v) for v in kept], [short(text, 22) for text in texts])
    ax.minorticks_off()


def named(value: Any) -> str:
    """A value as YAML has it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
