"""The finding in a sentence: how alike what is located is, how far scores run over seeds, and whether deltas point the same way."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from pkt.report.words import joined
from pkt.stability.located import ALL

Row = Mapping[str, Any]
BETWEEN = {
    "examples": "two single examples",
    "seeds": "two halves of the extract split",
    "draws": "two random draws",
    "tasks": "two tasks",
    "dtypes": "two dtypes",
}
"""What is compared, in words."""


def overall(rows: Sequence[Row], between: str) -> tuple[float, float, float | None] | None:
    """Jaccard index of a comparison, its chance level and the index above chance (1 is equal), the means over kinds and models.

    Where everything is chosen there is nothing to compare: such kinds count only if there are no others, and then nothing is above chance.
    """
    held = [row for row in rows if row["between"] == between and row["layer"] == ALL]
    if not held:
        return None
    open_ = [row for row in held if row["corrected"] is not None]
    mean, chance = (statistics.fmean(row[name] for row in open_ or held) for name in ("mean", "chance"))
    return mean, chance, statistics.fmean(row["corrected"] for row in open_) if open_ else None


def sentence(tables: Mapping[str, Sequence[Row]], what: str, method: str) -> str:
    """The finding, from the tables."""
    parts = [*_located(tables.get("jaccard", []), what), *_scores(tables.get("scores", [])), *_deltas(tables["deltas"])]
    return f"{method}: " + "; ".join(parts) + "."


def _located(rows: Sequence[Row], what: str) -> list[str]:
    groups: dict[str, list[str]] = {}
    chances = []
    for between, words in BETWEEN.items():
        found = overall(rows, between)
        if found:
            mean, chance, above = found
            chances.append(chance)
            groups.setdefault(alike(above), []).append(f"{words} ({mean:.2f})")
    if not groups:
        return []
    told = ", ".join(f"{degree} for {joined(names)}" for degree, names in groups.items())
    return [f"located {what} are {told}, where chance gives {statistics.fmean(chances):.2f} (Jaccard index)"]


def alike(above: float | None) -> str:
    """An index above chance, as a share of what there is above it, in words; None where everything is chosen."""
    if above is None:
        return "all there is, so the same"
    if above >= 0.9:
        return "almost the same"
    if above >= 0.5:
        return "largely the same"
    if above >= 0.2:
        return "mostly different"
    return "little more alike than by chance" if above >= 0.02 else "no more alike than by chance"


def _scores(rows: Sequence[Row]) -> list[str]:
    row = main_tier(rows)
    if row is None:
        return []
    run = f"runs from {row['min']:.3f} to {row['max']:.3f}" if row["range"] else f"is {row['mean']:.3f} in all"
    text = f"over {row['seeds']} seeds the score on {row['tier']} {run} (target {row['target']:.3f}"
    if row["item_error"] is not None:
        text += f"; standard error over items {row['item_error']:.3f}"
    return [text + ")"]


def main_tier(rows: Sequence[Row]) -> Row | None:
    """The tier that tells of transfer, `new`, else all items."""
    by_tier = {row["tier"]: row for row in rows}
    return by_tier.get("new") or by_tier.get("all")


def _deltas(rows: Sequence[Row]) -> list[str]:
    whole = [row for row in rows if row["part"] == ALL]
    known = [row for row in whole if row["cosine"] is not None]
    if not known:
        return ["the deltas are zero"]
    if min(row["cosine"] for row in known) > 1 - 1e-9:
        return ["the deltas of all seeds are the same"]
    mean, by_chance = (statistics.fmean(row[name] for row in known) for name in ("cosine", "random_sd"))
    return [f"the deltas of two seeds have a cosine of {mean:.3f} on average (random directions: 0 ± {by_chance:.4f})"]
