"""The lines of a frontier, and what is said of them."""

from __future__ import annotations

import pytest
from comparison_data import level, row

from pkt.report.figures import Figure
from pkt.report.frontier import pictures

AT = {"new": level(0.5)}


def drawn(*rows: dict) -> Figure:
    """Score against operations."""
    return pictures({"runs": list(rows)})[0].figure


@pytest.mark.parametrize("target", [AT, {}])
@pytest.mark.parametrize("source", [AT, {}])
def test_only_lines_that_are_drawn_are_explained(target: dict, source: dict) -> None:
    figure = drawn(row(target_scores=target, source_scores=source))
    for role, levels, said in (
        ("target", target, "The dashed line is the target as it was."),
        ("source", source, "The dotted line is the source."),
    ):
        assert (f">{role} (0.500)<" in figure.svg) is bool(levels)
        assert (said in figure.shown) is bool(levels)
    assert ("A run that changed nothing lies on the dashed line." in figure.chance) is bool(target)


@pytest.mark.parametrize("levels", [AT, {}])
def test_whose_lines_they_are_is_said_where_there_are_any_and_runs_differ(levels: dict) -> None:
    rows = [row(name, items=name, target_scores=levels, source_scores={}) for name in "ab"]
    shown = drawn(*rows).shown
    assert "not scored on the same items" in shown
    assert ("of the first run that has" in shown) is bool(levels)
    assert "of the first run" not in drawn(rows[0]).shown
