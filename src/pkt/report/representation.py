"""Pictures of the analysis of representation similarity, from the content of `representation.json`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pkt.report.dots import Dot, dots
from pkt.report.figures import Figure
from pkt.report.heatmap import Panel, heatmaps
from pkt.report.numbers import interval, plain, signed
from pkt.report.representation_words import NAMES, best_layers, is_in_order

Row = Mapping[str, Any]
Tables = Mapping[str, Sequence[Row]]
TITLES = {
    "cka": "Debiased linear CKA",
    "cka_biased": "Biased linear CKA",
    "rsa": "RSA: rank correlation of distances",
    "ridge": "R2 of ridge maps on held-out positions",
}
SCALES = {
    "cka": "1: the same up to rotation and scale; 0: unrelated.",
    "cka_biased": "1: the same up to rotation and scale. Unlike the debiased one it lies above 0 for unrelated features, the more so the wider "
    "they are beside the number of positions.",
    "rsa": "1: the same pairs of positions are close in both models; 0: unrelated.",
    "ridge": "1: a linear map gives the target's outputs exactly; 0: as good as their mean; below 0: worse than that.",
}


def figures(found: Mapping[str, Any]) -> list[Figure]:
    """In the order of the page."""
    tables: Tables = found["tables"]
    measures = list(dict.fromkeys(row["measure"] for row in tables["modules"]))
    pictures = [_means(found, measures)]
    roles = list(dict.fromkeys(row["role"] for row in tables["modules"]))
    for role in roles:
        pictures += [_maps(found, role, measure) for measure in (measures if role != "untrained" else measures[:1])]
    for role, less in dict.fromkeys((row["role"], row["less"]) for row in tables.get("differences", ())):
        pictures.insert(1, _difference(found, role, less, measures))
        if role == "specialist":
            pictures += list(_difference_maps(found, role, less, measures))
    return pictures


def _models(found: Mapping[str, Any]) -> dict[str, str]:
    specialist = found["options"].get("specialist")
    return {
        "source": found["source"],
        "specialist": specialist["name"] if specialist else "",
        "untrained": f"{found['source']} with new weights",
    }


def _means(found: Mapping[str, Any], measures: Sequence[str]) -> Figure:
    """Means over all pairs of layers, a picture for each measure since their chance levels differ."""
    rows, models = found["tables"]["modules"], _models(found)
    several = len({row["role"] for row in rows}) > 1
    parts, chance = [], []
    for measure in measures:
        held = [row for row in rows if row["measure"] == measure]
        most = max(row["null_95"] for row in held)
        parts.append(
            dots(
                [
                    Dot(
                        row["module"],
                        row["mean"],
                        row["low"],
                        row["high"],
                        TITLES[measure] + (f", {models[row['role']]}" if several else ""),
                    )
                    for row in held
                ],
                xlabel=NAMES[measure],
                references={"chance reaches at most": most},
                name=f"means-{measure}",
                label=f"{TITLES[measure]}: mean over all pairs of layers for each module",
            )
        )
        chance.append(f"{NAMES[measure]} {plain(most, 3)}")
    return Figure(
        name="module-means",
        title="How alike are the modules?",
        svg="".join(parts),
        shown="For every module the mean over all pairs of a source and a target layer, with its 95 % interval over texts.",
        read="A module whose whole interval lies to the right of the dashed line is represented more alike than chance has it. Published means of "
        "Llama-2-7B and 13B stand in the table beside both kinds of CKA; which metric they are of is not said.",
        chance=f"With texts exchanged for each other, 95 % of the means lie below: {', '.join(chance)} (the largest of all modules "
        "and models: the dashed line; the table has each).",
        origin="representation-modules.csv",
        columns=[
            "module and measure",
            "model",
            "mean",
            "95 % interval",
            "sd over pairs",
            "chance: mean",
            "chance: 95 %",
            "pairs above chance",
            "published mean",
            "published sd",
        ],
        rows=[
            [
                f"{row['module']}, {NAMES[row['measure']]}",
                models[row["role"]],
                plain(row["mean"], 3),
                interval(row["low"], row["high"]),
                plain(row["sd"], 3),
                plain(row["null_mean"], 3),
                plain(row["null_95"], 3),
                f"{row['pairs_above_null']} of {row['pairs']}",
                *("–" if row[key] is None else plain(row[key], 3) for key in ("published_mean", "published_sd")),
            ]
            for row in rows
        ],
    )


def _maps(found: Mapping[str, Any], role: str, measure: str) -> Figure:
    """One measure for all pairs of layers, a panel for each module, the best source layer of each target layer framed."""
    tables, model = found["tables"], _models(found)[role]
    means = [row for row in tables["modules"] if (row["role"], row["measure"]) == (role, measure)]
    best = best_layers(tables["best"], measure, role)
    panels = []
    for mean in means:
        module = mean["module"]
        values = _matrix(
            row for row in tables["pairs"] if (row["role"], row["measure"], row["module"]) == (role, measure, module)
        )
        panels.append(
            Panel(
                title=f"{module}: {plain(mean['mean'], 2)} (sd {plain(mean['sd'], 2)})",
                values=values,
                rows=[str(i) for i in range(len(values))],
                columns=[str(j) for j in range(len(values[0]))],
                xlabel="target layer",
                ylabel=f"{role} layer",
                marks=frozenset((i, j) for j, i in enumerate(best[module])),
                low=-1 if any(value is not None and value < -0.1 for row in values for value in row) else 0,
            )
        )
    low = min(panel.low for panel in panels)
    panels = [replace(panel, low=low) for panel in panels]  # one scale
    name = f"{measure}-{role}".replace("_", "-")
    rows = [row for row in tables["best"] if (row["role"], row["measure"]) == (role, measure)]
    return Figure(
        name=name,
        title=f"{TITLES[measure]}: {model} and {found['target']}",
        svg=heatmaps(panels, name, f"{TITLES[measure]} of every {role} layer with every target layer, for each module"),
        shown=f"{TITLES[measure]} of the outputs of every {role} layer (from below) and every target layer (from the left); in the titles mean and standard deviation "
        f"(sd) over all pairs, as published. Framed: the {role} layer that is most like each target layer.",
        read=f"{SCALES[measure]} A layer map by depth is right where frames climb from the lower left to the upper right. {_order(best)}",
        chance=_chance(means, rows),
        origin="representation-pairs.csv",
        columns=[
            "module, target layer",
            "best source layer",
            NAMES[measure],
            "95 % interval",
            "best by chance (95 %)",
            "second",
            "lead over it",
            "95 % interval of the lead",
        ],
        rows=[
            [
                f"{row['module']}, {row['target_layer']}",
                row["source_layer"],
                plain(row["value"], 3),
                interval(row["low"], row["high"]),
                plain(row["null_95"], 3),
                "–" if row["second"] is None else row["second"],
                "–" if row["second"] is None else plain(row["lead"], 3),
                "–" if row["second"] is None else interval(row["lead_low"], row["lead_high"]),
            ]
            for row in rows
        ],
    )


def _matrix(rows: Iterator[Row]) -> list[list[float | None]]:
    """Source layers by target layers, from rows in that order."""
    found: dict[int, list[float | None]] = {}
    for row in rows:
        found.setdefault(row["source_layer"], []).append(row["value"])
    return list(found.values())


def _order(best: Mapping[str, Sequence[int]]) -> str:
    ordered = [module for module, layers in best.items() if is_in_order(layers)]
    return (
        f"Here they do at every step for {', '.join(ordered)}."
        if ordered
        else "Here they do so at every step for no module."
    )


def _chance(means: Sequence[Row], best: Sequence[Row]) -> str:
    sure = sum(row["lead_low"] is not None and row["lead_low"] > 0 for row in best)
    above, pairs = sum(row["pairs_above_null"] for row in means), sum(row["pairs"] for row in means)
    return (
        f"{above} of {pairs} pairs lie above the 95 % of their own chance level, and 5 % would by chance. {sure} of {len(best)} framed layers lead the second best by "
        "more than their interval; where they do not, the frame could as well stand elsewhere."
    )


def _difference(found: Mapping[str, Any], role: str, less: str, measures: Sequence[str]) -> Figure:
    """The means of one model less those of another."""
    models, rows = _models(found), _by_measure(_of_difference(found["tables"]["differences"], role, less), measures)
    name = f"{role}-less-{less}"
    why = {
        "untrained": "Models that read the same tokens are alike for that alone, whatever they have learnt, and permuted positions do not show "
        "it: what training adds to the likeness is what lies right of the line. The new weights are drawn once: another draw would move a "
        "difference by some hundredths, which its interval over texts does not hold.",
        "source": "Right of the line: the specialist is more alike to the target.",
    }
    return Figure(
        name=name,
        title=f"{models[role]} less {models[less]}",
        svg=dots(
            [Dot(row["module"], row["value"], row["low"], row["high"], TITLES[row["measure"]]) for row in rows],
            xlabel="difference of the means over all pairs of layers",
            references={"no difference": 0.0},
            name=name,
            label=f"Similarity to the target of {models[role]} less that of {models[less]}, for each module and measure",
        ),
        shown=f"How much more alike to {found['target']} {models[role]} is than {models[less]}: difference of their means over all pairs of layers, with "
        "its 95 % interval. Both are compared on the same positions, and the same texts are left out.",
        read=f"{why[less]} An interval that holds the line shows no difference.",
        chance="Two models that are as alike to the target differ by 0.",
        origin="representation-differences.csv",
        columns=["module and measure", "difference", "95 % interval"],
        rows=[
            [f"{row['module']}, {NAMES[row['measure']]}", signed(row["value"]), interval(row["low"], row["high"])]
            for row in rows
        ],
    )


def _difference_maps(found: Mapping[str, Any], role: str, less: str, measures: Sequence[str]) -> Iterator[Figure]:
    """The same for every pair of layers, where both models have as many layers."""
    tables, models = found["tables"], _models(found)
    layers = _of_difference(tables.get("layer_differences", ()), role, less)
    for measure in measures if layers else ():
        held = [row for row in layers if row["measure"] == measure]
        most = max(abs(row["value"]) for row in held) or 1.0
        sure = sum(row["low"] > 0 or row["high"] < 0 for row in held)
        panels = []
        for mean in _by_measure(_of_difference(tables["differences"], role, less), [measure]):
            values = _matrix(row for row in held if row["module"] == mean["module"])
            panels.append(
                Panel(
                    title=f"{mean['module']}: mean {signed(mean['value'])}",
                    values=values,
                    rows=[str(i) for i in range(len(values))],
                    columns=[str(j) for j in range(len(values[0]))],
                    xlabel="target layer",
                    ylabel="source layer",
                    low=-most,
                    high=most,
                )
            )
        name = f"{measure}-{role}-less-{less}".replace("_", "-")
        yield Figure(
            name=name,
            title=f"{TITLES[measure]}: {models[role]} less {models[less]}",
            svg=heatmaps(panels, name, f"{TITLES[measure]}: {role} less {less}, for every pair of layers"),
            shown="The same difference for every pair of layers.",
            read="One colour where the first is more alike to the target, the other where it is less.",
            chance=f"0. Of {len(held)} pairs {sure} have an interval without 0; 5 % would by chance.",
            origin="representation-layer_differences.csv",
        )


def _of_difference(rows: Sequence[Row], role: str, less: str) -> list[Row]:
    return [row for row in rows if (row["role"], row["less"]) == (role, less)]


def _by_measure(rows: Sequence[Row], measures: Sequence[str]) -> list[Row]:
    return [row for measure in measures for row in rows if row["measure"] == measure]
