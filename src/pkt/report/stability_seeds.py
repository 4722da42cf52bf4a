"""The figures of the stability analysis that are about seeds: scores, directions and sizes of their deltas."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from pkt.report.dots import Dot, dots
from pkt.report.figures import Figure
from pkt.report.heatmap import Panel, heatmaps
from pkt.report.numbers import percent, signed
from pkt.report.stability_plots import range_lines
from pkt.stability.located import ALL

Rows = Sequence[Mapping[str, Any]]
JSON = "stability.json"


def scores(rows: Rows, by_seed: Rows) -> Figure:
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


def deltas(rows: Rows) -> Figure:
    parts = list(dict.fromkeys(row["part"] for row in rows))
    seeds = sorted({seed for row in rows for seed in (row["one"], row["other"])})
    value = {(row["part"], *sorted((row["one"], row["other"]))): row["cosine"] for row in rows}
    panels = [
        Panel(
            "whole delta" if part == ALL else part,
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
    known = {part: mean for part, mean in means.items() if mean is not None and part != ALL}
    said = "They are zero, so they have no direction."
    if known:
        least, most = (min if i == 0 else max for i in (0, 1))
        low, high = least(known, key=known.__getitem__), most(known, key=known.__getitem__)
        said = f"On average the whole deltas have {means[ALL]:.3f}; by module from {known[low]:.3f} ({low}) to {known[high]:.3f} ({high})."
    by_chance = _mean(rows, ALL, "random_sd")
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


def ranges(rows: Rows) -> Figure:
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
