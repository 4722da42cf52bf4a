"""The certificate's figures. Each takes part of `certificate.json` and returns one `<svg>` element."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from pkt.report.numbers import interval, signed
from pkt.report.plots import RESULT, SOURCE, TARGET, WIDTH, short
from pkt.report.svg import ARM_COLOURS, HEAT, INK, MUTED, drawing, new_figure, to_svg
from pkt.report.verdict import KINDS, comparisons, level

LOCATOR = ARM_COLOURS[3]
COLOURS = {"target": RESULT, "real": RESULT, "source": ARM_COLOURS[4], "locator": LOCATOR}
QUESTIONS = {
    "target": "Does it help? Better than the target as it was:",
    "source": "Is it the source? Better than the same method without the source's knowledge:",
    "locator": "Does location matter? Better than with the change placed elsewhere:",
}
SHADE = 0.16


def forest(certificate: Mapping[str, Any]) -> str:
    """One row per comparison: point, interval, zero line, margin band; a panel per question."""
    rows, margin = comparisons(certificate), certificate["margin"]
    groups = [[row for row in rows if row["kind"] == kind] for kind in KINDS]
    groups = [group for group in groups if group]
    limits = _limits(rows, margin)
    with drawing():
        figure = new_figure(WIDTH, 90 + 34 * len(rows) + 44 * len(groups))
        panels = figure.subplots(len(groups), sharex=True, squeeze=False, height_ratios=[len(g) + 0.3 for g in groups])
        for ax, group in zip(panels[:, 0], groups, strict=True):
            _rows(ax, group, COLOURS[group[0]["kind"]])
            ax.set_yticks(range(len(group)), [short(row["arm"], 24) for row in group])
            ax.set_title(QUESTIONS[group[0]["kind"]])
            ax.set_xlim(*limits)
            if margin:
                ax.axvspan(-margin, margin, facecolor=(MUTED, SHADE), edgecolor="none", zorder=0)
        for ax in panels[:-1, 0]:
            ax.tick_params(axis="x", length=0)
            ax.spines["bottom"].set_visible(False)
        panels[-1, 0].set_xlabel(
            "← worse than that arm\u2003\u2003difference in score\u2003\u2003better than that arm →"
        )
        handles: list[Any] = [Line2D([], [], color=INK, marker="o", label=f"mean and {level(certificate)} interval")]
        if margin:
            handles.append(Patch(facecolor=(MUTED, SHADE), label=f"within the margin of {margin:.3f}"))
        figure.legend(handles=handles, loc="outside upper left", ncols=2)
        return to_svg(figure, "forest", "The real source against every other arm: differences with intervals")


def guards(certificate: Mapping[str, Any]) -> str:
    """One row per guard that has a margin, in units of that margin; left of -1 is harm."""
    rows = scaled_guards(certificate)
    with drawing():
        figure = new_figure(WIDTH, 74 + 34 * len(rows))
        ax = figure.add_subplot()
        _rows(ax, rows, RESULT)
        ax.set_yticks(
            range(len(rows)),
            [f"{short(row['name'], 24)}{' (harm)' if row['harmed'] else ''}" for row in rows],
        )
        left, right = _limits(rows, 1)
        ax.set_xlim(min(left, -1.6), right)
        ax.axvspan(-1, 1, facecolor=(MUTED, SHADE), edgecolor="none", zorder=0)
        ax.axvspan(ax.get_xlim()[0], -1, facecolor=(HEAT, SHADE), edgecolor="none", zorder=0)
        ax.set_xlabel("← worse\u2003\u2003change over the guard's margin\u2003\u2003better →")
        return to_svg(figure, "guards", "Guards: change in units of each guard's margin")


def scaled_guards(certificate: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Guards with a margin to divide by; `text` keeps the change in the guard's own unit."""
    return [
        {
            **row,
            **{key: row[key] / row["margin"] for key in ("mean", "low", "high")},
            "text": f"{_numbers(row)} {short(row['unit'])}",
        }
        for row in certificate["guards"]
        if row["margin"]
    ]


def _rows(ax: Axes, rows: Sequence[Mapping[str, Any]], colour: str) -> None:
    """Points with intervals from top to bottom, their numbers on the right, a line at zero."""
    ax.axvline(0, color=INK, linewidth=1)
    for y, row in enumerate(rows):
        shown = HEAT if row.get("harmed") else colour
        ax.plot([row["low"], row["high"]], [y, y], color=shown, linewidth=2.4, marker="|", markersize=9)
        ax.plot(row["mean"], y, "o", color=shown, markersize=8)
        ax.text(1.01, y, row.get("text") or _numbers(row), transform=ax.get_yaxis_transform(), va="center")
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)


def _numbers(row: Mapping[str, Any]) -> str:
    return f"{signed(row['mean'])} {interval(row['low'], row['high'])}"


def _limits(rows: Sequence[Mapping[str, Any]], margin: float | None) -> tuple[float, float]:
    """Room for every interval, zero and the margin."""
    low = min(0.0, -(margin or 0), *(row["low"] for row in rows))
    high = max(0.0, margin or 0, *(row["high"] for row in rows))
    room = 0.06 * (high - low) or 0.01
    return low - room, high + room


def arm_scores(certificate: Mapping[str, Any]) -> str:
    """Mean score of every arm with its seeds; lines for the target and the source.

    Where the source is so far above that the arms would be one line, a second panel shows them closer, without it.
    """
    arms = [arm for arm in certificate["arms"] if arm["score"] is not None]
    target, source = (certificate["scores"].get(name) for name in ("target", "source"))
    near = [target, *(value for arm in arms for value in (arm["score"], *arm["seed_scores"]))]
    far = source is not None and abs(source - target) > 3 * (max(near) - min(near))
    with drawing():
        figure = new_figure(WIDTH, 470 if far else 330)
        ratios = (1, 1.6) if far else (1,)
        panels = figure.subplots(len(ratios), sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
        for ax in panels:
            ax.axhline(target, color=TARGET, linewidth=1.8, dashes=(4, 2), label=f"target ({target:.3f})")
            if source is not None and ax is panels[0]:
                ax.axhline(source, color=SOURCE, linewidth=1.8, dashes=(1, 1.5), label=f"source ({source:.3f})")
            _columns(ax, arms)
        if far:
            panels[1].set_title("the same, closer")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=4)
        return to_svg(figure, "arm-scores", "Score of every arm beside the target and the source")


def _columns(ax: Axes, arms: Sequence[Mapping[str, Any]]) -> None:
    """A column per arm: its mean and its seeds side by side."""
    for x, arm in enumerate(arms):
        seeds = arm["seed_scores"]
        spread = [x + 0.3 * ((i + 0.5) / len(seeds) - 0.5) for i in range(len(seeds))]
        ax.plot(spread, seeds, "o", color=INK, markersize=5, markerfacecolor="none", alpha=0.7)
        ax.plot([x - 0.28, x + 0.28], [arm["score"]] * 2, color=COLOURS[arm["kind"]], linewidth=3.4)
    ax.plot([], [], color=INK, linewidth=3.4, label="mean of the arm")
    ax.plot([], [], "o", color=INK, markersize=5, markerfacecolor="none", label="one seed")
    ax.set_xticks(range(len(arms)), [short(arm["arm"], 20).replace("_", "_\n", 1) for arm in arms])
    ax.set_xlim(-0.6, len(arms) - 0.4)
    ax.margins(y=0.1)
    ax.set_ylabel("score")
    ax.grid(axis="y")
    ax.tick_params(axis="x", length=0)


def curves(certificate: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Arms that were tried at two learning rates or more."""
    return [arm for arm in certificate["arms"] if len(arm["curve"]) >= 2]


def learning_rates(certificate: Mapping[str, Any]) -> str:
    """Validation loss by learning rate, a panel per arm on shared axes; the first arm returns faintly in the others."""
    arms = curves(certificate)
    columns = min(4, len(arms))
    losses = [point["loss"] for arm in arms for point in arm["curve"] if point["loss"] is not None]
    with drawing():
        figure = new_figure(WIDTH * columns / 4 + 60 * (columns < 3), 60 + 170 * math.ceil(len(arms) / columns))
        panels = figure.subplots(math.ceil(len(arms) / columns), columns, sharex=True, sharey=True, squeeze=False).flat
        for ax, arm in zip(panels, arms, strict=False):
            _curve(ax, arm, arms[0])
        if losses and min(losses) > 0 and max(losses) > 5 * min(losses):
            panels[0].set_yscale("log")
            _plain(panels[0].yaxis)
        for ax in list(panels)[len(arms) :]:
            ax.set_visible(False)
        figure.supxlabel("learning rate", fontsize=12)
        figure.supylabel("validation loss", fontsize=12)
        return to_svg(figure, "learning-rates", "Validation loss by learning rate for every arm")


def _curve(ax: Axes, arm: Mapping[str, Any], first: Mapping[str, Any]) -> None:
    ax.set_xscale("log")
    for shown, colour, width in ((first, MUTED, 1), (arm, COLOURS[arm["kind"]], 1.8)):
        held = sorted((point["lr"], point["loss"]) for point in shown["curve"] if point["loss"] is not None)
        ax.plot([lr for lr, _ in held], [loss for _, loss in held], color=colour, linewidth=width,
                marker="o" if shown is arm else "", markersize=4.5)  # fmt: skip
    ax.plot([lr for lr, _ in held if lr == arm["lr"]], [loss for lr, loss in held if lr == arm["lr"]], "o", color=INK,
            markersize=11, markerfacecolor="none", markeredgewidth=1.6)  # fmt: skip
    diverged = [point["lr"] for point in arm["curve"] if point["loss"] is None]
    ax.plot(diverged, [0.95] * len(diverged), "x", color=HEAT, markersize=8, markeredgewidth=2,
            transform=ax.get_xaxis_transform())  # fmt: skip
    _plain(ax.xaxis)
    ax.margins(x=0.14)
    ax.set_title(short(arm["arm"], 20))
    ax.grid(axis="y")


def _plain(axis: Any) -> None:
    """Ticks of a logarithmic axis as plain numbers."""
    rates = axis.axis_name == "x"
    axis.set_major_locator(LogLocator(subs=(1.0,) if rates else (1.0, 2.0, 5.0), numticks=5 if rates else 8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
