"""Curves and clouds of points as one `<svg>` element: small multiples with one legend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from pkt.report.heatmap import WIDTH
from pkt.report.svg import ARM_COLOURS, INK, MUTED, drawing, new_figure, to_svg

LOOKS = tuple(zip(ARM_COLOURS, "osD^vXP", ((), (4, 2), (1, 1.5), (6, 2, 1, 2), (3, 1), (5, 3), (2, 2)), strict=True))
"""Colour, marker and dashes, by `Curve.look`."""


@dataclass(frozen=True)
class Curve:
    """One line, or where it is a cloud, its points alone."""

    name: str
    """In the legend; curves of one name share their look."""
    xs: list[float]
    ys: list[float]
    look: int
    cloud: bool = False


@dataclass(frozen=True)
class Plot:
    """One panel."""

    title: str
    curves: list[Curve]
    xlabel: str
    ylabel: str
    ticks: tuple[float, ...] = ()
    """Of the x axis, which then doubles from step to step; none: it is linear."""
    low: float | None = None
    high: float | None = None
    """Ends of the y axis, where they are given."""
    diagonal: bool = False
    """Draw y = x."""


def curves(plots: Sequence[Plot], name: str, label: str, *, across: int = 3) -> str:
    """The panels side by side, as many as `across` in a line.

    Args:
        name: unique on the page; every id starts with it.
        label: what a screen reader says.
    """
    assert plots
    across = min(across, len(plots))
    down = -(-len(plots) // across)
    with drawing():
        figure = new_figure(WIDTH, 50 + 230 * down)
        axes = figure.subplots(down, across, squeeze=False).flatten()
        for ax, plot in zip(axes, plots, strict=False):
            _draw(ax, plot)
        for ax in axes[len(plots) :]:
            ax.set_visible(False)
        known: dict[str, Any] = {}
        for ax in axes[: len(plots)]:
            for handle, text in zip(*ax.get_legend_handles_labels(), strict=True):
                known.setdefault(str(text), handle)
        figure.legend(list(known.values()), list(known), loc="outside upper left", ncols=min(5, len(known)))
        return to_svg(figure, name, label)


def _draw(ax: Axes, plot: Plot) -> None:
    if plot.diagonal:
        values = [v for curve in plot.curves for v in (*curve.xs, *curve.ys)]
        ax.plot([min(values), max(values)], [min(values), max(values)], color=INK, linewidth=1, dashes=(4, 2), zorder=1)
    else:
        ax.axhline(0, color=MUTED, linewidth=0.8)
    for curve in plot.curves:
        colour, marker, dashes = LOOKS[curve.look]
        line = ax.plot(curve.xs, curve.ys, color=colour, marker=marker, markersize=5, linewidth=1.8, label=curve.name)[
            0
        ]
        if curve.cloud:
            line.set(linestyle="none", alpha=0.7, markeredgewidth=0)
        elif dashes:
            line.set_dashes(dashes)
    if plot.ticks:
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_locator(FixedLocator(list(plot.ticks)))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xticklabels([f"{tick:g}" for tick in plot.ticks])
    ax.set_ylim(plot.low, plot.high)
    ax.set_title(plot.title)
    ax.set_xlabel(plot.xlabel)
    ax.set_ylabel(plot.ylabel)
    ax.grid(axis="y")
