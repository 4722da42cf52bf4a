"""Words about the angles of starts: each matrix against its own bound, and noise beside the rest."""

from __future__ import annotations

from typing import Any

import pytest

from pkt.report.parametric_ranks import angles


def row(init: str, module: str, layer: int | None, mean_square: float, draw: int = 0) -> dict[str, Any]:
    found = {"init": init, "module": module, "layer": layer, "side": "left", "draw": draw, "mean_square": mean_square}
    return {**found, "chance_mean_square": 0.1, "largest": 0.5, "dimension": 96, "rank": 16}


CHANCE = {"dimension": 96, "rank": 16, "mean_square": 0.1, "mean_square_high": 0.12, "largest_low": 0.3, "largest_high": 0.6}  # fmt: skip


@pytest.mark.parametrize(
    ("values", "said"),
    [((0.2, 0.11), "up (columns) 1 of 2"), ((0.2, 0.121), "up (columns) 2 of 2"), ((0.12, 0.05), "none")],
)
def test_every_matrix_is_held_against_its_own_bound(values: tuple[float, float], said: str) -> None:
    rows = [row("seeking", "up", layer, value) for layer, value in enumerate(values)]
    rows += [row("random_block", "up", 0, 0.05), row("random_block", "up", 0, 0.9, draw=1)]
    read = angles({"angles": rows, "chance": [CHANCE]}, 2).read
    assert f"by chance: Seeking: {said}; random block: none." in read


def test_noise_beyond_its_bound_is_told() -> None:
    rows = [row("seeking", "unembed", None, 0.2), row("random_init", "unembed", None, 0.15)]
    read = angles({"angles": rows, "chance": [CHANCE]}, 1).read
    assert "Seeking: unembed (columns) 1 of 1; noise: unembed (columns) 1 of 1. Where noise is among them" in read
