"""The pictures of a sweep with their words. Takes the content of `sweep.json`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

from pkt.report.dots import Dot, dots
from pkt.report.figures import Figure
from pkt.report.heatmap import Panel as Heat
from pkt.report.heatmap import heatmaps
from pkt.report.numbers import p_value, percent, plus_minus
from pkt.report.sweep_groups import RECIPE, Group, distinct, groups, value_of
from pkt.report.sweep_plot import Line, Mark, Panel, draw, named
from pkt.report.sweep_words import change, is_clear, score

Row = Mapping[str, Any]
ORIGIN = "sweep.json"
MOST_DOTS, MOST_LINES = 40, 8


def figures(sweep: Row) -> list[Figure]:
    """All pictures, in the order of the page."""
    found = []
    for group in groups(sweep):
        several = f"-{group.number}" if len(sweep["groups"]) > 1 else ""
        if len(group.rows) <= MOST_DOTS and any(row["change"] for row in group.rows):
            found.append(_changes(group, several))
        numeric = [axis for axis in group.axes if axis != RECIPE]
        found += [_along(group, axis, several) for axis in numeric]
        if len(group.axes) >= 2:
            found += _heat(group, several)
        found += _sizes(group, several)
    return found


def _changes(group: Group, several: str) -> Figure:
    """The change of every point against the target."""
    rows = [row for row in group.rows if row["change"]]
    several_recipes = RECIPE in group.axes
    drawn = [
        Dot(
            row["point"].removeprefix(f"{row['recipe']},") if several_recipes else row["point"],
            row["change"]["mean"],
            row["change"]["low"],
            row["change"]["high"],
            row["recipe"] if several_recipes else "",
        )
        for row in rows
    ]
    clear = sum(is_clear(row["change"]) for row in rows)
    missed = 1 - rows[0]["change"]["level"]
    return Figure(
        name=f"changes{several}",
        title=f"Change against the target, tier {group.tier}",
        svg=dots(
            drawn,
            xlabel="change of the score",
            references={"no change": 0.0},
            name=f"changes{several}",
            label="Change of every setting against the target with its interval",
        ),
        shown="The score of every setting minus the target's, on the same items, with its interval over seeds and units.",
        read=f"An interval that leaves out zero is a change by itself; with {len(rows)} settings some do so by chance. After Holm's "
        f"correction {clear} of {len(rows)} stay clear of zero. A change says nothing about where it came from.",
        chance=f"{percent(missed)} of intervals leave out zero where nothing changed; of {len(rows)}, about {missed * len(rows):.1f}.",
        origin=ORIGIN,
        columns=["setting", "score", "change", "p", "p (Holm)"],
        rows=[
            [
                row["point"],
                score(row),
                change(row["change"]),
                p_value(row["change"]["p"]),
                p_value(row["change"]["p_holm"]),
            ]
            for row in rows
        ],
    )


def _along(group: Group, axis: str, several: str) -> Figure:
    """Score and valid loss along one axis."""
    values = group.axes[axis]
    panels = [Panel(f"score, tier {group.tier}", _lines(group, axis, _scored), _levels(group))]
    has_loss = all(row["valid_loss"] for row in group.rows)
    if has_loss:
        panels.append(Panel("loss on the valid split (nats per token)", _lines(group, axis, _lost), {}))
    mean = _is_mean(group, axis)
    name = f"along-{_slug(group.short(axis))}{several}"
    title = "Score against labels" if axis == "task.labels" else f"Score along {axis}"
    best = max(group.rows, key=lambda row: row["scores"][group.tier]["score"])
    chance = group.rows[0]["chance"].get(group.tier)
    return Figure(
        name=name,
        title=title,
        svg=draw(panels, values, axis, name, title),
        shown=(
            f"The score on tier {group.tier} for every value of {axis}"
            + (
                ", averaged over the other settings; the band spans their lowest and highest"
                if mean
                else "; the band is one standard error over seeds and units"
            )
            + ("; below it the loss on the valid split" if has_loss else "")
            + ("" if not has_loss else ", likewise" if mean else " with the band from its lowest to its highest seed")
            + "."
        ),
        read="Where bands overlap much, the picture does not tell values apart; sweep.csv has every setting against the best, paired by item. "
        f"The highest score here is {score(best)} at {axis}={named(value_of(best, axis))}"
        + (
            "; a setting should be chosen where the valid loss is lowest, and not where the test score is highest."
            if has_loss
            else "; it is the best of several tries, so it looks better than it is."
        ),
        chance=(f"A constant guess scores {chance:.3f}. " if chance is not None else "")
        + "An axis that does not matter gives a level line within its band.",
        origin=ORIGIN,
        columns=["setting", "score", "target", "change", "valid loss"],
        rows=[_cells(row) for row in group.rows],
    )


def _slug(axis: str) -> str:
    return axis.replace("_", "-").replace(".", "-")


def _cells(row: Row) -> list[str]:
    target = row["target_scores"].get(row["tier"])
    loss = row["valid_loss"]
    return [
        row["point"],
        score(row),
        "–" if target is None else plus_minus(target["score"], target["standard_error"]),
        change(row["change"]),
        "–" if loss is None else f"{loss['mean']:.4f}",
    ]


def _levels(group: Group) -> dict[str, float]:
    """Scores of the target and of a constant guess."""
    found = {}
    if target := group.rows[0]["target_scores"].get(group.tier):
        found["target"] = target["score"]
    if (chance := group.rows[0]["chance"].get(group.tier)) is not None:
        found["chance"] = chance
    return found


def _scored(row: Row) -> tuple[float, float, float]:
    level = row["scores"][row["tier"]]
    error = level["standard_error"] or 0
    return level["score"], level["score"] - error, level["score"] + error


def _lost(row: Row) -> tuple[float, float, float]:
    loss = row["valid_loss"]
    return loss["mean"], min(loss["by_seed"]), max(loss["by_seed"])


def _is_mean(group: Group, axis: str) -> bool:
    """Whether there are more lines than a reader can tell apart."""
    return len(distinct([group.others(row, [axis]) for row in group.rows])) > MOST_LINES


def _lines(group: Group, axis: str, read: Callable[[Row], tuple[float, float, float]]) -> list[Line]:
    """A line for each setting of the other axes; their mean where they are many."""
    if _is_mean(group, axis):
        marks = []
        for value in group.axes[axis]:
            found = [read(row)[0] for row in group.rows if repr(value_of(row, axis)) == repr(value)]
            marks.append(Mark(value, fmean(found), min(found), max(found)))
        return [Line("mean over the other settings", _in_order(marks))]
    lines: dict[str, list[Mark]] = {}
    for row in group.rows:
        lines.setdefault(group.others(row, [axis]), []).append(Mark(value_of(row, axis), *read(row)))
    return [Line(label, _in_order(marks)) for label, marks in lines.items()]


def _in_order(marks: list[Mark]) -> list[Mark]:
    """Numbers from left to right, anything else as it was given."""
    is_number = all(isinstance(mark.at, int | float) and not isinstance(mark.at, bool) for mark in marks)
    return sorted(marks, key=lambda mark: mark.at) if is_number else marks


def _heat(group: Group, several: str) -> list[Figure]:
    """A heat map of every pair of axes, a panel for each setting of the rest."""
    found = []
    for across, up in itertools.combinations(group.axes, 2):
        rest = distinct([group.others(row, [across, up]) for row in group.rows])
        if len(rest) > MOST_LINES:
            continue
        scores = [row["scores"][group.tier]["score"] for row in group.rows]
        panels = [_panel(group, across, up, one, min(scores), max(scores)) for one in rest]
        name = f"grid-{_slug(group.short(across))}-{_slug(group.short(up))}{several}"
        found.append(
            Figure(
                name=name,
                title=f"Score over {group.short(across)} and {group.short(up)}",
                svg=heatmaps(panels, name, f"Score over {across} and {up}"),
                shown=f"The score on tier {group.tier} for every pair of values; the frame marks the highest score.",
                read="A ridge along one axis says that the other does not matter; single bright cells are most likely chance. The scale runs "
                f"from the lowest to the highest score here, {min(scores):.3f} to {max(scores):.3f}.",
                chance="The brightest of many equal cells lies above the others by about two standard errors.",
                origin=ORIGIN,
            )
        )
    return found


def _panel(group: Group, across: str, up: str, rest: str, low: float, high: float) -> Heat:
    """One heat map."""
    columns, rows = group.axes[across], group.axes[up]
    values: list[list[float | None]] = [[None] * len(columns) for _ in rows]
    marks = set()
    at = {repr(value): i for i, value in enumerate(columns)}, {repr(value): i for i, value in enumerate(rows)}
    for row in group.rows:
        if group.others(row, [across, up]) == rest:
            x, y = at[0][repr(value_of(row, across))], at[1][repr(value_of(row, up))]
            values[y][x] = row["scores"][group.tier]["score"]
            if row["point"] == group.best:
                marks.add((y, x))
    return Heat(
        title=rest,
        values=values,
        rows=[named(value) for value in rows],
        columns=[named(value) for value in columns],
        xlabel=group.short(across),
        ylabel=group.short(up),
        marks=frozenset(marks),
        low=low,
        high=high if high > low else low + 1e-9,
    )


def _sizes(group: Group, several: str) -> list[Figure]:
    """Change against the ratio of sizes, where sources of several sizes were run and changes are known."""
    ratios = {row["point"]: _ratio(row) for row in group.rows}
    if any(ratio is None for ratio in ratios.values()) or len(set(ratios.values())) < 2:
        return []
    rows = sorted(group.rows, key=lambda row: ratios[row["point"]] or 0)
    lines: dict[str, list[Mark]] = {}
    for row in rows:
        label = group.others(row, ["source", "source.name"])
        found = row["change"]
        if found:
            lines.setdefault(label, []).append(Mark(ratios[row["point"]], found["mean"], found["low"], found["high"]))
    if not lines:
        return []
    name = f"sizes{several}"
    title = "Change against the ratio of sizes"
    values = distinct([mark.at for marks in lines.values() for mark in marks])
    panel = Panel(
        f"change of the score, tier {group.tier}", [Line(*line) for line in lines.items()], {"no change": 0.0}
    )
    axis = "source's parameters over the target's"
    return [
        Figure(
            name=name,
            title=title,
            svg=draw([panel], values, axis, name, title),
            shown="The score minus the target's, by how many times larger the source is; the band is the interval.",
            read="If transfer suffers from the gap between scales, the line falls to the right. Sources of several sizes differ in more than "
            "size: look at their own scores too.",
            chance="No change at any ratio: a level line at zero.",
            origin=ORIGIN,
            columns=["setting", "ratio", "source's score", "change"],
            rows=[
                [row["point"], f"{ratios[row['point']]:.1f}", _source_score(row), change(row["change"])] for row in rows
            ],
        )
    ]


def _ratio(row: Row) -> float | None:
    source, target = row["source_parameters"], row["target_parameters"]
    return round(source / target, 2) if source and target else None


def _source_score(row: Row) -> str:
    found = row["source_scores"].get(row["tier"])
    return "–" if found is None else f"{found['score']:.3f}"
