"""Points of a sweep that can be compared, and the axes that vary among them. Takes the content of `sweep.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pkt.report.sweep_plot import named

Row = Mapping[str, Any]
RECIPE = "recipe"


@dataclass(frozen=True)
class Group:
    """Points that were scored on the same items, and the axes that vary among them."""

    rows: list[Row]
    tier: str
    number: int
    best: str
    chosen: str | None

    @property
    def axes(self) -> dict[str, list[Any]]:
        """Values by axis, of those that have several; recipes are one."""
        names = [RECIPE, *self.rows[0]["settings"]]
        found = {name: distinct([value_of(row, name) for row in self.rows]) for name in names}
        return {name: values for name, values in found.items() if len(values) > 1}

    def short(self, axis: str) -> str:
        """The last part of an axis, `steps` of `method.steps`, if no other axis ends so."""
        ends = [other.rpartition(".")[2] for other in self.axes]
        end = axis.rpartition(".")[2]
        return end if ends.count(end) == 1 else axis

    def others(self, row: Row, axes: Sequence[str]) -> str:
        """What a point has on the axes that are not `axes`."""
        rest = [axis for axis in self.axes if axis not in axes]
        return ", ".join(
            named(value_of(row, a)) if a == RECIPE else f"{self.short(a)}={named(value_of(row, a))}" for a in rest
        )


def groups(sweep: Row) -> list[Group]:
    """The groups of a sweep."""
    by_name = {row["point"]: row for row in sweep["points"]}
    return [
        Group(
            [by_name[name] for name in found["points"]], found["tier"], i, found["best"], found["chosen_by_valid_loss"]
        )
        for i, found in enumerate(sweep["groups"], 1)
    ]


def value_of(row: Row, axis: str) -> Any:
    """A point's value on an axis."""
    return row["recipe"] if axis == RECIPE else row["settings"].get(axis)


def distinct(values: Sequence[Any]) -> list[Any]:
    """Values, each once, in their order; 1 and true are two."""
    return list({repr(value): value for value in values}.values())
