"""Pictures that the stability analysis alone has: how often layers are chosen, and ranges of a change beside the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pkt.report.plots import KINDS, RESULT, SOURCE, TARGET, WIDTH
from pkt.report.svg import ARM_COLOURS, INK, MUTED, drawing, new_figure, to_svg

Row = Mapping[str, Any]


def layer_bars(rows: Sequence[Row]) -> str:
    """Share of single examples and of halves that choose each source layer, a panel per kind; triangles: the recipe's own choice."""
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    with drawing():
        figure = new_figure(WIDTH, 40 + 190 * len(kinds))
        for ax, kind in zip(figure.subplots(len(kinds), squeeze=False)[:, 0], kinds, strict=True):
            held = [row for row in rows if row["kind"] == kind]
            at = [row["source_layer"] for row in held]
            for name, shift, colour in (("examples", -0.2, SOURCE), ("halves", 0.2, ARM_COLOURS[3])):
                heights = [row[f"share_{name}"] or 0 for row in held]
                ax.bar(
                    [x + shift for x in at],
                    heights,
                    0.38,
                    color=colour,
                    label={"examples": "single examples"}.get(name, name),
                )
            ax.axhline(held[0]["chance"], color=INK, linewidth=1.4, dashes=(4, 2), label="chance")
            own = [row["source_layer"] for row in held if row["chosen"]]
            ax.plot(own, [1.08] * len(own), "v", color=INK, markersize=8, label="the recipe's choice", clip_on=False)
            ax.set_title(KINDS.get(kind, "all matrices of a layer"))
            ax.set_ylim(0, 1.16)
            ax.set_yticks([0, 0.5, 1])
            ax.set_xlim(-0.6, len(held) - 0.4)
            ax.set_xticks(at[:: 1 + len(at) // 25])
            ax.set_ylabel("share")
            ax.tick_params(axis="x", length=0)
            ax.grid(axis="y")
        ax.set_xlabel("source layer")
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=4)
        return to_svg(figure, "layers", "How often each source layer is chosen")


def range_lines(rows: Sequence[Row]) -> str:
    """Smallest to largest entry (thin) and root mean square (thick) of change and weights, by part over layers and seeds."""
    parts = list(dict.fromkeys(row["part"] for row in rows))
    with drawing():
        figure = new_figure(WIDTH, 80 + 44 * len(parts))
        ax = figure.add_subplot()
        ax.axvline(0, color=MUTED, linewidth=0.8)
        for y, part in enumerate(parts):
            held = [row for row in rows if row["part"] == part]
            total = sum(row["entries"] for row in held)
            for of, shift, colour, name in (
                ("weight_", -0.17, TARGET, "the target's weights"),
                ("", 0.17, RESULT, "the change"),
            ):
                low, high = min(row[f"{of}min"] for row in held), max(row[f"{of}max"] for row in held)
                rms = (sum(row["entries"] * row[f"{of}rms"] ** 2 for row in held) / total) ** 0.5
                ax.plot([low, high], [y + shift] * 2, color=colour, linewidth=1.6, marker="|", markersize=9)
                ax.plot(
                    [-rms, rms],
                    [y + shift] * 2,
                    color=colour,
                    linewidth=8,
                    solid_capstyle="butt",
                    label=None if y else name,
                )
        ax.set_yticks(range(len(parts)), parts)
        ax.set_ylim(len(parts) - 0.5, -0.5)
        ax.set_xlabel("entry")
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="x")
        figure.legend(loc="outside upper left", ncols=2)
        return to_svg(figure, "ranges", "Range of the change and of the weights by module")
