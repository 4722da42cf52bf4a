"""The report's figures. Each takes part of `summary.json` and returns one `<svg>` element."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from pkt.report.heatmap import Panel, heatmaps
from pkt.report.numbers import finite, percent
from pkt.report.svg import ARM_COLOURS, INK, MUTED, drawing, new_figure, to_svg
from pkt.report.table import ARMS, arm_names, score_rows

WIDTH = 800
"""Of the page's column, in CSS pixels."""
KINDS = {"ffn": "FFN", "attention": "attention"}
TARGET, SOURCE, RESULT = ARM_COLOURS[:3]


def scores(summary: Mapping[str, Any]) -> str:
    """Bars per tier with one standard error; a dashed line per tier where chance is known."""
    rows, arms = score_rows(summary), arm_names(summary)
    others = cycle(ARM_COLOURS[3:])
    colours = {arm: ARM_COLOURS[ARMS.index(arm)] if arm in ARMS else next(others) for arm in arms}
    step = 0.8 / len(arms)
    with drawing():
        figure = new_figure(max(WIDTH, 26 * len(rows) * len(arms)), 320)
        ax = figure.add_subplot()
        for i, arm in enumerate(arms):
            held = [(x, row.cells[arm]) for x, row in enumerate(rows) if arm in row.cells]
            at = [x - 0.4 + step * (i + 0.5) for x, _ in held]
            ax.bar(at, [cell.score for _, cell in held], step * 0.9, color=colours[arm], label=short(arm))
            errors = [cell.error or 0 for _, cell in held]
            ax.errorbar(at, [cell.score for _, cell in held], errors, fmt="none", color=INK, elinewidth=1.2, capsize=3)
        for x, row in enumerate(rows):
            if row.chance is not None:
                label = "chance" if "chance" not in ax.get_legend_handles_labels()[1] else None
                ax.plot([x - 0.45, x + 0.45], [row.chance] * 2, color=INK, linewidth=1.4, dashes=(3, 2), label=label)
        ax.set_xticks(range(len(rows)), [short(row.tier) for row in rows], rotation=0 if len(rows) <= 8 else 60)
        ax.set_ylim(0, 1.04)
        ax.set_ylabel("score")
        ax.grid(axis="y")
        ax.tick_params(axis="x", length=0)
        figure.legend(loc="outside upper left", ncols=len(arms) + 1)
        return to_svg(figure, "scores", "Scores per tier with standard errors")


def layer_scores(layers: Mapping[str, Mapping[str, Any]], unit: str | None) -> str:
    """Score of every layer of both models, without a unit over each one's largest; chosen source layers are filled."""
    kinds = kinds_of(layers)
    with drawing():
        figure = new_figure(WIDTH, 250 * len(kinds))
        for ax, kind in zip(figure.subplots(len(kinds), squeeze=False)[:, 0], kinds, strict=True):
            part = layers[kind]
            chosen = {source for source, _ in part["map"]}
            ax.axhline(0, color=MUTED, linewidth=0.8)
            of_source, of_target = (_scaled(part[f"{role}_scores"], unit) for role in ("source", "target"))
            for values, colour, marker, name in (
                (of_source, SOURCE, "o", "source (filled: chosen)"),
                (of_target, TARGET, "s", "target"),
            ):
                ax.plot(range(len(values)), values, color=colour, linewidth=1.2, label=name, marker=marker,
                        markersize=6, markerfacecolor="none" if marker == "o" else colour)  # fmt: skip
            filled = sorted(layer for layer in chosen if layer < len(of_source))
            ax.plot(filled, [of_source[i] for i in filled], "o", color=SOURCE, markersize=6)
            _step_axis(ax, _depth(part))
            ax.set_title(KINDS.get(kind, kind))
            ax.set_xlabel("layer")
            ax.set_ylabel(f"score ({unit})" if unit else "score over largest")
            ax.grid(axis="y")
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=2)
        return to_svg(figure, "layer-scores", "Layer scores of both models")


def _scaled(scores: Sequence[float], unit: str | None) -> list[float]:
    most = max(map(abs, scores), default=0.0) or 1.0
    return [score if unit else score / most for score in scores]


def layer_maps(layers: Mapping[str, Mapping[str, Any]]) -> str:
    """Lines from source layers to target layers, for each kind; the y axis is relative depth."""
    kinds = kinds_of(layers)
    depth = max(_depth(part) for part in layers.values())
    with drawing():
        figure = new_figure(min(WIDTH, 340 * len(kinds)), 80 + max(160, min(depth, 48) * 15))
        for ax, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
            _draw_map(ax, layers[kind])
            ax.set_title(KINDS.get(kind, kind), loc="center")
        return to_svg(figure, "layer-maps", "Layer maps from source to target")


def _draw_map(ax: Axes, part: Mapping[str, Any]) -> None:
    pairs = part["map"]
    sides = []
    for x, (name, colour, side) in enumerate((("source", SOURCE, 0), ("target", TARGET, 1))):
        used = {pair[side] for pair in pairs}
        count = max([len(part[f"{name}_scores"]), *(layer + 1 for layer in used)])
        heights = [(layer + 0.5) / count for layer in range(count)]
        every = 1 if count <= 48 else math.ceil(count / 40)
        for layer, y in enumerate(heights):
            ax.plot(x, y, "o", markersize=6, color=colour, markerfacecolor=colour if layer in used else "none")
            if layer % every == 0:
                ax.text(x + (0.08 if x else -0.08), y, str(layer), va="center", ha="left" if x else "right",
                        fontsize=11, color=INK if layer in used else MUTED)  # fmt: skip
        sides.append(heights)
    for source, target in pairs:
        ax.plot([0, 1], [sides[0][source], sides[1][target]], color=INK, linewidth=1, alpha=0.55, zorder=0)
    ax.set_xticks([0, 1], ["source", "target"])
    ax.set_yticks([0, 1], ["input", "output"])
    ax.set_xlim(-0.4, 1.4)
    ax.set_ylim(-0.02, 1.02)
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.tick_params(length=0)


LOSSES = {
    "cross_entropy": "cross-entropy (nats per token)",
    "state_error": "state error (in variances of the target's state)",
    "moment_error": "moment error (squared)",
    "divergence": "divergence (nats per token)",
    "loss": "loss (nats per token)",
}
"""What a delta may be trained for: key of a history's records and title of its panel."""


def trained_for(history: Sequence[Mapping[str, Any]]) -> str | None:
    """The key of `LOSSES` that every record has."""
    return next((key for key in LOSSES if history and all(key in record for record in history)), None)


def losses(history: Sequence[Mapping[str, Any]]) -> str:
    """What was trained for and the penalty in panels of their own, by step."""
    steps = [record["step"] for record in history]
    key = trained_for(history)
    assert key is not None
    panels = [(key, LOSSES[key], RESULT)]
    if all("penalty" in record for record in history):
        panels.append(("penalty", "penalty (before its weight)", ARM_COLOURS[3]))
    with drawing():
        figure = new_figure(WIDTH if len(panels) > 1 else WIDTH / 2, 260)
        for ax, (key, title, colour) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            values = [record[key] for record in history]
            marker = "o" if len(steps) <= 40 else ""
            ax.plot(steps, values, color=colour, linewidth=1.6, marker=marker, markersize=4.5)
            ax.set_title(title)
            ax.set_xlabel("step")
            ax.grid(axis="y")
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
            if len(steps) == 1:
                ax.set_xlim(steps[0] - 1, steps[0] + 1)
                ax.set_xticks(steps)
                ax.set_ylim(0, values[0] * 1.3 or 1)
        return to_svg(figure, "losses", "Loss by step")


def source_dependence(history: Sequence[Mapping[str, Any]]) -> str:
    """The step's change beside that of the same hypernetwork fed with noise: direction and size, by step."""
    kinds = (("source_cosine", "cosine with the noise-fed change"), ("noise_norm_ratio", "norm: noise-fed over real"))
    panels = [(key, title) for key, title in kinds if any(finite(record.get(key)) for record in history)]
    with drawing():
        figure = new_figure(WIDTH if len(panels) > 1 else WIDTH / 2, 260)
        for ax, (key, title) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            held = [(record["step"], record[key]) for record in history if finite(record.get(key))]
            ax.axhline(1, color=INK, linewidth=1.2, dashes=(4, 2))
            marker = "o" if len(held) <= 40 else ""
            ax.plot(
                [s for s, _ in held], [v for _, v in held], color=RESULT, linewidth=1.6, marker=marker, markersize=4.5
            )
            ax.set_ylim(min(0, *(1.08 * v for _, v in held)), max(1.08, *(1.08 * v for _, v in held)))
            ax.set_title(title)
            ax.set_xlabel("step")
            ax.grid(axis="y")
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        return to_svg(figure, "source-dependence", "How much the change depends on what the hypernetwork was fed")


def delta_sizes(delta: Sequence[Mapping[str, Any]]) -> str:
    """Root mean square of the change over that of the target's weights in the same lines: layers by modules."""
    parts = list(dict.fromkeys(row["part"] for row in delta))
    layers = sorted({row["layer"] for row in delta}, key=lambda layer: (layer is None, layer))
    sizes = {(row["layer"], row["part"]): row.get("relative_rms") for row in delta}
    largest = max((size for size in sizes.values() if finite(size)), default=0) or 1
    values = [[sizes.get((layer, part)) for part in parts] for layer in layers]
    names = ["none" if layer is None else str(layer) for layer in layers]
    panel = Panel("", values, names, parts, "module", "layer", high=largest, show=percent)
    return heatmaps([panel], "delta-sizes", "Size of the change by layer and module")


def kinds_of(layers: Mapping[str, Any]) -> list[str]:
    """In the order in which they are drawn."""
    return [*(kind for kind in KINDS if kind in layers), *(kind for kind in layers if kind not in KINDS)]


def _depth(part: Mapping[str, Any]) -> int:
    """Layers of the deeper model."""
    return max(len(part["source_scores"]), len(part["target_scores"]))


def _step_axis(ax: Axes, count: int) -> None:
    ax.set_xlim(-0.5, count - 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=min(count, 12)))


def short(name: str, most: int = 14) -> str:
    """A name that fits beside an axis."""
    return name if len(name) <= most else name[: most - 1] + "…"
