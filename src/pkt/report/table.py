"""Scores per tier, for the HTML report and for the command line."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pkt.report.numbers import plus_minus

if TYPE_CHECKING:
    from rich.table import Table

ARMS = ("target", "source", "result")
TIERS = {
    "known": "units that the target was trained on",
    "located": "units that occur in the extract split",
    "aligned": "units that occur in the align split, which some methods train on",
    "new": "units that occur in no split: transfer must show here, though a tuned target may also guess better",
    "skill": "a labelled skill that the align and train splits teach, so ordinary tuning can raise it",
    "all": "the whole test split",
}
"""Tiers in the order in which they are shown, with their meaning."""
SCORED = "the items of the test split that were scored"
"""What `all` means where that is not known to be the whole."""

Verdict = Literal["up", "down", "none", "unknown"]


@dataclass(frozen=True)
class Cell:
    """The score of one arm in one tier."""

    score: float
    error: float | None
    """One standard error, clustered by unit; None where one unit alone leaves it unknown."""
    num_items: int
    num_units: int
    seeds: int

    def __str__(self) -> str:
        return plus_minus(self.score, self.error)


@dataclass(frozen=True)
class Change:
    """The result's score minus the target's."""

    value: float
    error: float | None
    """One standard error: paired by item and clustered by unit where the summary has it, else of two independent scores."""

    @property
    def verdict(self) -> Verdict:
        """Changes below two standard errors are not visible: `none`."""
        if self.value == 0:
            return "none"
        if self.error is None:
            return "unknown"
        if abs(self.value) < 2 * self.error:
            return "none"
        return "up" if self.value > 0 else "down"

    def __str__(self) -> str:
        sign = "+" if self.value > 0 else "−" if self.value < 0 else ""
        return sign + plus_minus(abs(self.value), self.error)


@dataclass(frozen=True)
class ScoreRow:
    """One tier: a cell per arm, in the order target, source, result, then any others."""

    tier: str
    cells: dict[str, Cell]
    chance: float | None
    """Score of the best constant guess of what the unit decides."""
    paired: Change | None = None
    """From target to result on the same items, as the summary has it."""

    @property
    def change(self) -> Change | None:
        """From target to result, where both were scored."""
        if not {"target", "result"} <= self.cells.keys():
            return None
        if self.paired:
            return self.paired
        before, after = self.cells["target"], self.cells["result"]
        known = before.error is not None and after.error is not None
        error = math.hypot(before.error or 0, after.error or 0) if known else None
        return Change(after.score - before.score, error)

    @property
    def items(self) -> str:
        return _range(cell.num_items for cell in self.cells.values())

    @property
    def units(self) -> str:
        return _range(cell.num_units for cell in self.cells.values())

    @property
    def seeds(self) -> str:
        return _range(cell.seeds for cell in self.cells.values())


def score_rows(summary: Mapping[str, Any]) -> list[ScoreRow]:
    """One row per tier of `summary.json`, known tiers first, `all` last.

    Args:
        summary: the content of `summary.json`.
    """
    lines, arms = summary.get("scores", []), arm_names(summary)
    rows = []
    for tier in tier_order(line["tier"] for line in lines):
        found = {line["arm"]: line for line in lines if line["tier"] == tier}
        cells = {arm: _cell(found[arm]) for arm in arms if arm in found}
        chances = [line["chance"] for line in found.values() if line.get("chance") is not None]
        result = found.get("result", {})
        paired = Change(result["change"], result["change_error"]) if "change" in result else None
        rows.append(ScoreRow(tier, cells, chances[0] if chances else None, paired))
    return rows


def tier_order(tiers: Iterable[str]) -> list[str]:
    """Known tiers first, then others as they come, `all` last."""
    found = dict.fromkeys(tiers)
    known = [tier for tier in TIERS if tier in found and tier != "all"]
    return [*known, *(t for t in found if t not in TIERS), *(["all"] if "all" in found else [])]


def arm_names(summary: Mapping[str, Any]) -> list[str]:
    """The scored models: target, source, result, then any others in their order."""
    present = dict.fromkeys(line["arm"] for line in summary.get("scores", []))
    return [*(arm for arm in ARMS if arm in present), *(arm for arm in present if arm not in ARMS)]


def rich_table(summary: Mapping[str, Any]) -> Table:
    """The scores for a terminal: arms as columns, tiers as rows, `0.080 ± 0.016` (one standard error)."""
    from rich.table import Table
    from rich.text import Text

    rows, arms = score_rows(summary), arm_names(summary)
    has_change = any(row.change for row in rows)
    has_chance = any(row.chance is not None for row in rows)
    columns = [*arms, *(["change"] if has_change else []), *(["chance"] if has_chance else []), "items", "units"]
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("tier", no_wrap=True)
    for name in columns:
        table.add_column(Text(name), justify="right", no_wrap=True)
    for row in rows:
        cells = [str(row.cells.get(arm, "")) for arm in arms]
        cells += [str(row.change or "")] if has_change else []
        cells += ["" if row.chance is None else f"{row.chance:.3f}"] if has_chance else []
        table.add_row(*(Text(cell) for cell in (row.tier, *cells, row.items, row.units)))
    return table


def _cell(line: Mapping[str, Any]) -> Cell:
    error = line.get("standard_error")
    return Cell(line["score"], error, line["num_items"], line["num_units"], line.get("seeds", 1))


def _range(values: Iterable[int]) -> str:
    """One number, or the smallest and largest where the arms differ."""
    found = sorted(set(values))
    return str(found[0]) if len(found) == 1 else f"{found[0]}–{found[-1]}"
