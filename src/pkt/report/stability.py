"""The figures of the stability analysis, from the content of its JSON file."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from pkt.report.dots import Dot, dots
from pkt.report.figures import Figure
from pkt.report.heatmap import Panel, heatmaps
from pkt.report.numbers import finite, percent, signed
from pkt.report.plots import KINDS
from pkt.report.stability_plots import layer_bars, range_lines
from pkt.stability.comparisons import ALL
from pkt.stability.seeds import WHOLE
from pkt.stability.words import BETWEEN

Row = Mapping[str, Any]
Rows = Sequence[Row]
JSON = "stability.json"
NAMES = {
    "examples": "single examples",
    "seeds": "halves, by seed",
    "draws": "draws of seeds",
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
        made.append(_scores(tables["scores"], tables["seeds"]))
    return [*made, _deltas(tables["deltas"]), _ranges(tables["ranges"])]


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
    own = {kind: [str(row["source_layer"]) for row in rows if row["kind"] == kind and row["chosen"]] for kind in kinds}
    of = rows[0]["of_examples"]
    return Figure(
        "layers",
        "Which source layers are chosen?",
        layer_bars(rows),
        f"How often each source layer is among the highest-scoring, over {of} single examples and {rows[0]['of_halves']} halves of the "
        "extract split. Triangles: the layers that the recipe's own delta was made from ("
        + "; ".join(f"{KINDS.get(kind, 'all matrices')} {', '.join(layers)}" for kind, layers in own.items())
        + ").",
        f"A layer at 1 or 0 is chosen, or left out, whatever the example: {len(sure)} of {len(rows)} here. The more bars stand in between, the "
        "more the layer map depends on the examples.",
        f"Every layer at {rows[0]['chance']:.2f}: as many layers as the target has, of those of the source.",
        JSON,
        ["kind", "source layer", "examples", "halves", "chosen by the recipe"],
        [
            [
                KINDS.get(row["kind"], "all matrices"),
                row["source_layer"],
                f"{row['examples']} of {row['of_examples']}",
                f"{row['halves']} of {row['of_halves']}",
                "yes" if row["chosen"] else "no",
            ]
            for row in rows
        ],
    )


def _scores(rows: Rows, by_seed: Rows) -> Figure:
    points = [Dot(row["tier"], row["change"], row["change_min"], row["change_max"]) for row in rows]
    svg = dots(
        points,
        xlabel="score minus the target's",
        references={"the target": 0.0},
        name="scores",
        label="Change of the score by tier, with its range over seeds",
    )
    widest = max(rows, key=lambda row: row["range"])
    noise = widest["item_error"]
    said = (
        ""
        if noise is None
        else f", where the items alone leave one seed's score uncertain by {noise:.3f} (one standard error)"
    )
    return Figure(
        "scores",
        "Do seeds agree on the score?",
        svg,
        f"The result's score minus the target's, the mean over {rows[0]['seeds']} seeds; bars run from the lowest seed to the highest.",
        "A bar that crosses the line: some seeds gain and some lose. The widest is "
        f"{widest['tier']}, from {widest['min']:.3f} to {widest['max']:.3f}{said}.",
        "Without any effect the dot is at the line. What guessing scores is in the table.",
        JSON,
        ["tier", "target", "mean", "sd", "lowest", "highest", "variance", "error over items", "guessing", "items"],
        [
            [
                row["tier"],
                f"{row['target']:.3f}",
                f"{row['mean']:.3f}",
                f"{row['sd']:.3f}",
                f"{row['min']:.3f}",
                f"{row['max']:.3f}",
                f"{row['variance']:.2g}",
                "–" if row["item_error"] is None else f"{row['item_error']:.3f}",
                f"{row['chance']:.3f}",
                row["items"],
            ]
            for row in rows
        ],
    )


def _deltas(rows: Rows) -> Figure:
    parts = list(dict.fromkeys(row["part"] for row in rows))
    seeds = sorted({seed for row in rows for seed in (row["one"], row["other"])})
    value = {(row["part"], *sorted((row["one"], row["other"]))): row["cosine"] for row in rows}
    panels = [
        Panel(
            "whole delta" if part == WHOLE else part,
            [[1.0 if a == b else value[part, *sorted((a, b))] for b in seeds] for a in seeds],
            [str(seed) for seed in seeds],
            [str(seed) for seed in seeds],
            "seed",
            "seed",
            low=-1,
        )
        for part in parts
    ]
    means = {part: _mean(rows, part, "cosine") for part in parts}
    known = {part: mean for part, mean in means.items() if mean is not None and part != WHOLE}
    said = "They are zero, so they have no direction."
    if known:
        least, most = (min if i == 0 else max for i in (0, 1))
        low, high = least(known, key=known.__getitem__), most(known, key=known.__getitem__)
        said = f"On average the whole deltas have {means[WHOLE]:.3f}; by module from {known[low]:.3f} ({low}) to {known[high]:.3f} ({high})."
    by_chance = _mean(rows, WHOLE, "random_sd")
    return Figure(
        "deltas",
        "Do the deltas of two seeds point the same way?",
        heatmaps(panels, "deltas", "Cosine of the deltas of every two seeds"),
        "Cosine of the deltas of every two seeds over all entries: the whole, and each module.",
        f"1: the same change up to its size; 0: nothing in common; below: they undo each other. {said}",
        "Random directions of these sizes in the same lines: 0"
        + ("" if by_chance is None else f", with a standard deviation of {by_chance:.4f} for the whole delta")
        + ". Deltas that share their lines, their start or their loss have more than chance in common from the outset.",
        JSON,
        ["module", "cosine", "random directions", "entries", "same lines (Jaccard)", "by chance"],
        [
            [
                part,
                "–" if means[part] is None else f"{means[part]:.3f}",
                _written(_mean(rows, part, "random_sd"), "± {:.4f}"),
                f"{next(row['entries'] for row in rows if row['part'] == part):,}",
                _written(_mean(rows, part, "lines_jaccard"), "{:.3f}"),
                _written(_mean(rows, part, "lines_chance"), "{:.3f}"),
            ]
            for part in parts
        ],
    )


def _mean(rows: Rows, part: str, name: str) -> float | None:
    held = [row[name] for row in rows if row["part"] == part and row[name] is not None]
    return statistics.fmean(held) if held else None


def _written(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _ranges(rows: Rows) -> Figure:
    parts = list(dict.fromkeys(row["part"] for row in rows))
    seeds = len({row["seed"] for row in rows})
    ratios = {
        part: [row["max_ratio"] for row in rows if row["part"] == part and row["max_ratio"] is not None]
        for part in parts
    }
    rms = {
        part: [row["rms_ratio"] for row in rows if row["part"] == part and row["rms_ratio"] is not None]
        for part in parts
    }
    largest = max((part for part in parts if rms[part]), key=lambda part: max(rms[part]), default=None)
    said = (
        ""
        if largest is None
        else f" The largest RMS is {percent(max(rms[largest]))} of that of the weights ({largest})."
    )
    return Figure(
        "ranges",
        "How large is the delta beside the weights?",
        range_lines(rows),
        f"Entries of the change, and of the target's weights in the same entries, by module, over all layers and {seeds} seeds: thin lines run from "
        "the smallest to the largest entry, thick ones one root mean square (RMS) to each side.",
        f"A change whose thin line is longer than the weights' overrides single weights; a thick one that is far shorter is a small correction.{said}",
        "A size has no chance level. For comparison: slices of the source without alignment are as large as the weights.",
        JSON,
        [
            "module",
            "largest change / largest weight",
            "RMS of change / of weights",
            "1 % to 99 % of the change",
            "of the weights",
        ],
        [
            [
                part,
                _span(ratios[part]),
                _span(rms[part]),
                _quantiles(rows, part, ""),
                _quantiles(rows, part, "weight_"),
            ]
            for part in parts
        ],
    )


def _span(values: Sequence[float]) -> str:
    return f"{percent(min(values))} to {percent(max(values))}" if values else "–"


def _quantiles(rows: Rows, part: str, of: str) -> str:
    """The widest over layers and seeds."""
    held = [row for row in rows if row["part"] == part]
    return f"{signed(min(row[of + 'q01'] for row in held))} to {signed(max(row[of + 'q99'] for row in held))}"
