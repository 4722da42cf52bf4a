"""The figures of the stability analysis, from the content of its JSON file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pkt.report.dots import Dot, dots
from pkt.report.figures import Figure
from pkt.report.heatmap import Panel, heatmaps
from pkt.report.numbers import finite
from pkt.report.plots import KINDS
from pkt.report.stability_plots import layer_bars
from pkt.report.stability_seeds import JSON, deltas, ranges, scores
from pkt.report.stability_words import BETWEEN
from pkt.stability.located import ALL

Row = Mapping[str, Any]
Rows = Sequence[Row]
NAMES = {
    "examples": "single examples",
    "seeds": "halves, by seed",
    "draws": "random draws",
    "tasks": "tasks",
    "dtypes": "dtypes",
}
"""Comparisons, as short as an axis needs them."""


def figures(found: Mapping[str, Any]) -> list[Figure]:
    """All figures whose tables are there, in the order of the page."""
    tables: Mapping[str, Rows] = found["tables"]
    made = []
    if tables.get("jaccard"):
        made += [_agreement(tables["jaccard"]), _by_layer(tables["jaccard"])]
    if any(row["between"] == "tasks" for row in tables.get("pairs", [])):
        made.append(_tasks(tables["pairs"]))
    if tables.get("layers"):
        made.append(_layers(tables["layers"]))
    if tables.get("scores"):
        made.append(scores(tables["scores"], tables["seeds"]))
    return [*made, deltas(tables["deltas"]), ranges(tables["ranges"])]


def place(row: Row) -> str:
    """Model and kind, `source, FFN`; of blocks, which are the source's alone, the matrix."""
    return f"{row['model']}, {KINDS[row['kind']]}" if row["kind"] in KINDS else row["kind"]


def chance_levels(rows: Rows) -> dict[str, float]:
    """Reference lines: one level, or the lowest and the highest where they differ by more than a hundredth."""
    held = [row["chance"] for row in rows]
    low, high = min(held), max(held)
    return {"chance": high} if high - low < 0.01 else {"lowest chance": low, "highest chance": high}


def _agreement(rows: Rows) -> Figure:
    whole = [row for row in rows if row["layer"] == ALL]
    points = [
        Dot(
            place(row),
            row["mean"],
            None if row["sd"] is None else max(0, row["mean"] - row["sd"]),
            None if row["sd"] is None else min(1, row["mean"] + row["sd"]),
            f"between {NAMES[row['between']]}",
        )
        for row in whole
    ]
    svg = dots(
        points,
        xlabel="Jaccard index",
        references=chance_levels(whole),
        name="agreement",
        label="Jaccard index of what is located, by what is compared",
    )
    least = min(whole, key=lambda row: row["corrected"] if finite(row["corrected"]) else 1)
    return Figure(
        "agreement",
        "Does it find the same place again?",
        svg,
        "How far two choices of the same size overlap (Jaccard index: shared over all, 1 when they are equal), averaged over layers; bars "
        "are one standard deviation over pairs. Compared are " + "; ".join(_compared(whole)) + ".",
        "Far right: the same is found again. At the line: what is found depends on that alone. The least agreement here is between "
        f"{NAMES[least['between']]} ({place(least)}): {least['mean']:.3f} where chance gives {least['chance']:.3f}. Halves hold half the "
        "examples each; tasks that agree less than halves of one task do are located apart.",
        "Two random choices of these sizes; the lines are their expected index, exact, not simulated. It depends on how many are chosen of "
        "how many: every row's own is in the table.",
        JSON,
        [
            "compared",
            "where",
            "Jaccard",
            "sd",
            "least",
            "pairs",
            "chance",
            "times chance",
            "above chance",
            "chosen",
            "of",
        ],
        [
            [
                NAMES[row["between"]],
                place(row),
                f"{row['mean']:.3f}",
                "–" if row["sd"] is None else f"{row['sd']:.3f}",
                f"{row['min']:.3f}",
                row["pairs"],
                f"{row['chance']:.3f}",
                f"{row['ratio']:.1f}",
                "–" if row["corrected"] is None else f"{row['corrected']:.3f}",
                row["chosen"],
                row["of"],
            ]
            for row in whole
        ],
    )


def _compared(rows: Rows) -> list[str]:
    return [f"{BETWEEN[name]} ({_num(rows, name)} pairs)" for name in dict.fromkeys(row["between"] for row in rows)]


def _num(rows: Rows, between: str) -> int:
    return next(row["pairs"] for row in rows if row["between"] == between)


def _by_layer(rows: Rows) -> Figure:
    names = list(dict.fromkeys(row["between"] for row in rows))[::-1]
    panels = []
    for title in dict.fromkeys(map(place, rows)):
        held = [row for row in rows if place(row) == title and row["layer"] != ALL]
        layers = list(dict.fromkeys(row["layer"] for row in held))
        value = {(row["between"], row["layer"]): row["mean"] for row in held}
        panels.append(
            Panel(
                title,
                [[value.get((name, layer)) for layer in layers] for name in names],
                [NAMES[name] for name in names],
                ["none" if layer is None else str(layer) for layer in layers],
                "layer",
                "compared",
            )
        )
    held = [row for row in rows if row["layer"] != ALL]
    best = max(
        held, key=lambda row: row["corrected"] if row["between"] == "examples" and finite(row["corrected"]) else -1
    )
    said = (
        f" Single examples agree most in layer {best['layer']} ({place(best)}): {best['mean']:.2f}."
        if best["between"] == "examples"
        else ""
    )
    return Figure(
        "by-layer",
        "Agreement by layer",
        heatmaps(panels, "by-layer", "Jaccard index of what is located, by layer and by what is compared"),
        "The same index, layer by layer: one map for each model and kind.",
        "Each row is a comparison, each column a layer; the fuller the colour, the more alike. A row that is pale from end to end is a "
        f"choice that depends on what it was asked with, in all layers.{said}",
        "Every cell would be at its map's level: "
        + ", ".join(
            f"{place(row)} {row['chance']:.3f}"
            for row in rows
            if row["layer"] == ALL and row["between"] == rows[0]["between"]
        )
        + ".",
        JSON,
    )


def _tasks(rows: Rows) -> Figure:
    held = [row for row in rows if row["between"] == "tasks"]
    names = list(dict.fromkeys(name for row in held for name in (row["one"], row["other"])))
    value = {(place(row), *sorted((row["one"], row["other"]))): row["jaccard"] for row in held}
    panels = [
        Panel(
            title,
            [[1.0 if a == b else value[title, *sorted((a, b))] for b in names] for a in names[::-1]],
            [_short(name) for name in names[::-1]],
            [_short(name) for name in names],
            "task",
            "task",
        )
        for title in dict.fromkeys(map(place, held))
    ]
    closest = max(held, key=lambda row: row["jaccard"])
    return Figure(
        "tasks",
        "Which tasks share a place?",
        heatmaps(panels, "tasks", "Jaccard index of what is located, task by task"),
        "Jaccard index of what is located on every two tasks, averaged over layers.",
        f"Most alike are {closest['one']} and {closest['other']} ({place(closest)}): {closest['jaccard']:.2f}. Compare with the halves of one "
        "task above, which is what the same knowledge gives when it is asked with other examples.",
        ", ".join(dict.fromkeys(f"{place(row)} {row['chance']:.3f}" for row in held))
        + " between any two; 1 on the diagonal.",
        JSON,
    )


def _short(task: str) -> str:
    return task.removeprefix("nano/")


def _layers(rows: Rows) -> Figure:
    kinds = dict.fromkeys(row["kind"] for row in rows)
    sure = [row for row in rows if row["share_examples"] in (0.0, 1.0)]
    chosen = {
        kind: [str(row["source_layer"]) for row in rows if row["kind"] == kind and row["chosen"]] for kind in kinds
    }
    own = [f"{KINDS.get(kind, 'all matrices')} {', '.join(layers)}" for kind, layers in chosen.items() if layers]
    of = rows[0]["of_examples"]
    return Figure(
        "layers",
        "Which source layers are chosen?",
        layer_bars(rows),
        f"How often each source layer is among the highest-scoring, over {of} single examples and {rows[0]['of_halves']} halves of the "
        "extract split."
        + (f" Triangles: the layers that the recipe's own delta was made from ({'; '.join(own)})." if own else ""),
        f"A layer at 1 or 0 is chosen, or left out, whatever the example: {len(sure)} of {len(rows)} here. The more bars stand in between, the "
        "more the layer map depends on the examples.",
        f"Every layer at {rows[0]['chance']:.2f}: as many layers as the target has, of those of the source.",
        JSON,
        ["kind", "source layer", "examples", "halves", *(["chosen by the recipe"] if own else [])],
        [
            [
                KINDS.get(row["kind"], "all matrices"),
                row["source_layer"],
                f"{row['examples']} of {row['of_examples']}",
                f"{row['halves']} of {row['of_halves']}",
                *(["yes" if row["chosen"] else "no"] if own else []),
            ]
            for row in rows
        ],
    )
