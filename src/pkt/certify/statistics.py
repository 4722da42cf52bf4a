"""Differences between arms, with intervals that know seeds and knowledge units.

S seeds, I items, N units. Scores are compared item by item and seed by seed; items of one unit are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import t as student

from pkt.evaluation.statistics import mean_and_error

ROUNDING = 1e-12
"""A standard error below this is what rounding leaves of none."""


@dataclass(frozen=True)
class Spread:
    """A mean difference with what its error is made of: `variance = seed_variance / S + unit_variance / N`."""

    mean: float
    seed_variance: float
    unit_variance: float
    num_seeds: int
    num_units: int
    is_score: bool = True
    """Of items in [0, 1], and not in some other unit."""

    def scaled(self, num_seeds: int, num_units: int) -> Spread:
        """The same with other numbers of seeds and units, as if mean and variances stayed."""
        return replace(self, num_seeds=num_seeds, num_units=num_units)

    def error_and_df(self) -> tuple[float, float]:
        """Standard error, and Satterthwaite's degrees of freedom."""
        by_seed, by_unit = self.seed_variance / self.num_seeds, self.unit_variance / self.num_units
        total = by_seed + by_unit
        if total < ROUNDING**2:
            return 0.0, math.inf
        df = total**2 / (by_seed**2 / (self.num_seeds - 1) + by_unit**2 / (self.num_units - 1))
        return math.sqrt(total), df

    def interval(self, level: float) -> tuple[float, float]:
        """Two-sided t interval.

        Where all differences of scores are equal there is no variance to go by. Then the half width is the largest share of units
        that could differ by one and yet not be met in `num_units` of them with probability (1 - level) / 2: the rule of three.
        """
        error, df = self.error_and_df()
        if not error:
            half = min(1.0, -math.log((1 - level) / 2) / self.num_units) if self.is_score else 0.0
        else:
            half = error * float(student.ppf((1 + level) / 2, df))
        return self.mean - half, self.mean + half

    def p_value(self) -> float:
        """Two-sided p-value of no difference."""
        error, df = self.error_and_df()
        if not error:
            return min(1.0, 2 * self._met(abs(self.mean)))
        return 2 * float(student.sf(abs(self.mean) / error, df))

    def p_above(self, bound: float) -> float:
        """One-sided p-value of a true difference of at least `bound`: small if the mean lies far below it."""
        error, df = self.error_and_df()
        if not error:
            return self._met(max(0.0, bound - self.mean))
        return float(student.cdf((self.mean - bound) / error, df))

    def _met(self, distance: float) -> float:
        """How likely a truth at this distance gives differences that are all equal: the rule of three, as in `interval`."""
        return math.exp(-self.num_units * distance) if self.is_score else float(distance == 0)


def spread(
    one_SI: np.ndarray,
    two_SI: np.ndarray,
    units: Sequence[str],
    weights: Sequence[float] | None = None,
    *,
    is_score: bool = True,
) -> Spread:
    """The mean of `one - two`.

    Args:
        one_SI, two_SI: scores of the same items (columns) at the same seeds (rows).
        units: the unit of each item; at least two. weights: of each item.
    """
    differences_SI = np.asarray(one_SI, float) - np.asarray(two_SI, float)
    if not np.isfinite(differences_SI).all():
        raise ValueError("scores must be finite")
    weight_I = np.ones(len(units)) if weights is None else np.asarray(weights, float)
    by_seed_S = differences_SI @ weight_I / weight_I.sum()
    mean, error = mean_and_error(differences_SI.mean(0).tolist(), units, weight_I.tolist())
    num_units = len(set(units))
    return Spread(mean, float(by_seed_S.var(ddof=1)), error**2 * num_units, len(by_seed_S), num_units, is_score)


def holm(p_values: Sequence[float], family: int | None = None) -> list[float]:
    """Holm's adjusted p-values, in the order given.

    Args:
        family: number of hypotheses, where these were picked from more by looking at the data; None: these are all.
    """
    num = len(p_values) if family is None else family
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (num - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted
