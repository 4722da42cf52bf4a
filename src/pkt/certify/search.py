"""The search for an arm's learning rate: a grid of factors around a centre, extended while the best is at an edge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

MOST_EXTENSIONS = 8


@dataclass
class Search:
    """Validation losses by learning rate. A run that diverged has an infinite loss."""

    centre: float
    factors: Sequence[float]
    losses: dict[float, float] = field(default_factory=dict)

    def wanted(self) -> list[float]:
        """Learning rates to try next; empty when the search is over."""
        grid = sorted({_tidy(self.centre * factor) for factor in self.factors})
        missing = [lr for lr in grid if lr not in self.losses]
        if missing:
            return missing
        tried = sorted(self.losses)
        if len(grid) < 2 or not self.at_edge() or len(tried) >= len(grid) + MOST_EXTENSIONS:
            return []
        if self.best() == tried[-1] and math.isfinite(self.losses[tried[-1]]):
            return [_tidy(tried[-1] * grid[-1] / grid[-2])]
        return [_tidy(tried[0] * grid[0] / grid[1])]

    def best(self) -> float:
        """The learning rate of the lowest loss, the lowest of equals."""
        return min(sorted(self.losses), key=lambda lr: self.losses[lr])

    def at_edge(self) -> bool:
        """Whether a rate beyond those tried could be better."""
        return self.best() in (min(self.losses), max(self.losses))


def _tidy(lr: float) -> float:
    return float(f"{lr:.4g}")
