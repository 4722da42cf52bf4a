"""What does a score cost? Pictures of score against operations and against labels, one line per series, and what they say."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pkt.errors import DataError
from pkt.report.comparison import Row, groups, large, mixed, setting
from pkt.report.figures import Figure
from pkt.report.frontier_plot import draw
from pkt.report.numbers import plus_minus

COSTS = {"flop": "FLOP", "labels": "labels"}
CHANCE = (
    "Two runs of the same true score may differ by one and a half bars in up to one of three pairs, by chance alone; the more runs are "
    "shown, the more differ so."
)
LINES = {"target": "The dashed line is the target as it was.", "source": "The dotted line is the source."}
MARKS = "filled: transfer; ring: tuning; diamond: no effect or undecided; cross: harm; small: no certificate with control arms"


@dataclass(frozen=True)
class Point:
    """One run: what it cost and what it scored, with one standard error."""

    run: str
    series: str
    cost: float
    score: float
    error: float | None
    mark: str
    """`transfer`, `tuning`, `other` or `none`."""
    harm: bool


@dataclass(frozen=True)
class Picture:
    """One figure with its words."""

    figure: Figure
    setting: str
    undominated: list[str]
    """Runs that no other beats at no more cost."""


def pictures(comparison: Mapping[str, Any], tier: str | None = None) -> list[Picture]:
    """Two for each task, source and target: by operations and by labels.

    Args:
        comparison: the content of `comparison.json`.
        tier: whose scores are shown; None means the tier that decides.

    Raises:
        DataError: no run has that tier.
    """
    known = dict.fromkeys(t for row in comparison["runs"] for t in row["scores"])
    if tier is not None and tier not in known:
        raise DataError(f"--tier {tier!r}: no run has such a tier; there are {', '.join(known) or 'none'}")
    found = []
    for rows in groups(comparison):
        found += [_picture(rows, tier or rows[0]["tier"], cost) for cost in COSTS]
    return [picture for picture in found if picture is not None]


def _picture(rows: Sequence[Row], tier: str, cost: str) -> Picture | None:
    """None where no run has a score and that cost."""
    points = [point for row in rows if (point := _point(row, tier, cost))]
    if not points:
        return None
    known = {role: _levels(rows, tier, f"{role}_scores") for role in ("target", "source")}
    lines = {role: next(iter(found), None) for role, found in known.items()}
    chance = rows[0]["chance"].get(tier)
    about = dict.fromkeys([*(rows[0][key] for key in ("task", "source", "target", "tier")), tier])
    name = re.sub(r"[^\w.-]+", "-", "-".join(["frontier", *about, cost]))
    best = undominated(points)
    title = f"Score on tier {tier} against {COSTS[cost]}"
    svg = draw(points, lines, chance, COSTS[cost], name, f"{title}: {setting(rows)}")
    missing = len(rows) - len(points)
    figure = Figure(
        name,
        title,
        svg,
        shown=_shown(tier, cost, [LINES[role] for role in lines if known[role]], missing, mixed(rows)),
        read=_read(points, best, lines["target"], cost),
        chance=_chance(chance, lines["target"]),
        origin="comparison.json",
    )
    return Picture(figure, setting(rows), [point.run for point in best])


def _point(row: Row, tier: str, cost: str) -> Point | None:
    level, value = row["scores"].get(tier), row["costs"][cost]
    if level is None or value is None:
        return None
    judged = row["verdict"] if row["asked"] else None
    mark = judged if judged in ("transfer", "tuning") else "other" if judged else "none"
    return Point(
        row["run"], row["series"], value, level["score"], level["standard_error"], mark, harm=bool(row["harm"])
    )


def _levels(rows: Sequence[Row], tier: str, of: str) -> list[float]:
    """Of all runs that have it; one number where they are asked the same."""
    return list(dict.fromkeys(row[of][tier]["score"] for row in rows if tier in row[of]))


def undominated(points: Sequence[Point]) -> list[Point]:
    """Those for which no other is as good at less cost, or better at no more; cheapest first."""

    def beats(q: Point, p: Point) -> bool:
        return q.cost <= p.cost and q.score >= p.score and (q.cost < p.cost or q.score > p.score)

    best = [p for p in points if not any(beats(q, p) for q in points)]
    return sorted(best, key=lambda p: (p.cost, p.run))


def _shown(tier: str, cost: str, lines: Sequence[str], missing: int, warning: str) -> str:
    said = [
        "Each point is one run, each line one recipe through its runs with the same words in its method's options; up is better, left is "
        f"cheaper, bars are one standard error. {MARKS.capitalize()}.",
        *lines,
    ]
    if warning:
        said.append(f"{warning}{' A line is that of the first run that has one.' if lines else ''}")
    if missing:
        said.append(
            f"Not shown, for want of a score on tier {tier} or a count of {COSTS[cost]}: {missing} run{'s' * (missing != 1)}."
        )
    return " ".join(said)


def _chance(guess: float | None, target: float | None) -> str:
    said = [f"The best constant guess scores {guess:.3f}."] if guess is not None else []
    said += ["A run that changed nothing lies on the dashed line."] if target is not None else []
    return " ".join([*said, CHANCE])


def _read(points: Sequence[Point], best: Sequence[Point], target: float | None, cost: str) -> str:
    said = [_says(best, cost)]
    if target is not None:
        below = [p.run for p in best if p.score <= target]
        if below:
            said.append(f"The target itself costs nothing, and of these {', '.join(below)} scored no better.")
        above = sum(p.score > target for p in points)
        said.append(
            f"{above} of {len(points)} runs {'scores' if above == 1 else 'score'} above the target as it was ({target:.3f})."
        )
    return " ".join(said)


def _says(best: Sequence[Point], cost: str) -> str:
    """Which runs are not dominated."""
    shown = ", ".join(
        f"{p.run} ({large(p.cost) if cost == 'flop' else f'{p.cost:,}'} {COSTS[cost]}, {plus_minus(p.score, p.error)})"
        for p in best
    )
    whose = "this run" if len(best) == 1 else "these runs"
    return f"Not dominated, for no other run is as good with fewer {COSTS[cost]} or better with as many, {'is' if len(best) == 1 else 'are'} {whose}: {shown}."
