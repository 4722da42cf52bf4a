"""Differences between arms: the interval against a direct computation, its coverage, and Holm's correction."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student

from pkt.certify.statistics import Spread, holm, spread

SEEDS, UNITS, ITEMS = 5, 40, 3


def scores(rng: np.random.Generator, seed_sd=1.0, unit_sd=1.0, item_sd=1.0, draws=1) -> np.ndarray:
    """Differences (draws, S, N * ITEMS) with an effect of each seed, of each unit, and of each item at each seed."""
    of_seed = rng.normal(0, seed_sd, (draws, SEEDS, 1))
    of_unit = np.repeat(rng.normal(0, unit_sd, (draws, 1, UNITS)), ITEMS, axis=2)
    return of_seed + of_unit + rng.normal(0, item_sd, (draws, SEEDS, UNITS * ITEMS))


UNIT_OF = [f"u{i // ITEMS}" for i in range(UNITS * ITEMS)]


@pytest.mark.parametrize("share", [1 / 3, 0.1, 0.3])
def test_what_rounding_leaves_of_no_variance_is_none(share):
    """Equal gains in all units, as 3 items of 1/3 or fractional scores give them."""
    units = [f"u{i // 3}" for i in range(6)]
    found = spread(np.tile([share * 3, 0.0, 0.0], (5, 2)), np.zeros((5, 6)), units)
    assert found.mean == pytest.approx(share)
    low, high = found.interval(0.95)
    assert high - low == pytest.approx(2.0)  # the rule of three of two units


def test_spread_is_the_direct_computation():
    one, two = (scores(np.random.default_rng(i))[0] for i in (1, 2))
    found = spread(one, two, UNIT_OF)
    difference = one - two
    of_seeds = [float(np.mean(row)) for row in difference]
    of_units = [float(np.mean(difference[:, i * ITEMS : (i + 1) * ITEMS])) for i in range(UNITS)]
    s2_seed, s2_unit = np.var(of_seeds, ddof=1), np.var(of_units, ddof=1)
    assert found.mean == pytest.approx(np.mean(difference))
    assert found.seed_variance == pytest.approx(s2_seed)
    assert found.unit_variance == pytest.approx(s2_unit)
    assert (found.num_seeds, found.num_units) == (SEEDS, UNITS)

    variance = s2_seed / SEEDS + s2_unit / UNITS
    df = variance**2 / ((s2_seed / SEEDS) ** 2 / (SEEDS - 1) + (s2_unit / UNITS) ** 2 / (UNITS - 1))
    assert found.error_and_df() == pytest.approx((math.sqrt(variance), df))
    assert SEEDS - 1 < df < SEEDS + UNITS - 2
    for level in (0.9, 0.95):
        half = student.ppf(0.5 + level / 2, df) * math.sqrt(variance)
        assert found.interval(level) == pytest.approx((found.mean - half, found.mean + half))
    assert found.p_value() == pytest.approx(2 * student.sf(abs(found.mean) / math.sqrt(variance), df))
    assert found.p_above(0.3) == pytest.approx(student.cdf((found.mean - 0.3) / math.sqrt(variance), df))


def test_units_of_unequal_size_and_weights():
    """The linearised error of a ratio, written out: weighted residuals, summed by unit, over the sum of weights."""
    rng = np.random.default_rng(0)
    units = ["a"] * 4 + ["b"] * 2 + ["c"] + ["d"] * 3
    weights = rng.integers(1, 5, len(units)).astype(float)
    one, two = rng.normal(size=(2, 3, len(units)))
    found = spread(one, two, units, weights.tolist())
    difference, total = one - two, weights.sum()
    by_item = difference.mean(0)
    mean = sum(w * x for w, x in zip(weights, by_item, strict=True)) / total
    squares = 0.0
    for unit in "abcd":
        squares += sum(w * (x - mean) for w, x, u in zip(weights, by_item, units, strict=True) if u == unit) ** 2
    assert found.mean == pytest.approx(mean)
    assert found.unit_variance / 4 == pytest.approx(4 / 3 * squares / total**2)
    assert found.seed_variance == pytest.approx(np.var([row @ weights / total for row in difference], ddof=1))
    assert spread(one, two, units, [2.0] * len(units)) == spread(one, two, units)
    # an item of weight 3 is as good as three of it
    copies = [i for i, w in enumerate(weights) for _ in range(int(w))]
    repeated = spread(one[:, copies], two[:, copies], [units[i] for i in copies])
    assert found.mean == pytest.approx(repeated.mean)
    assert found.unit_variance == pytest.approx(repeated.unit_variance)
    assert found.seed_variance == pytest.approx(repeated.seed_variance)


@pytest.mark.parametrize(("seed_sd", "unit_sd"), [(0.3, 1.5), (1.0, 1.0), (0.0, 1.0), (1.0, 0.0)])
def test_interval_covers_when_seeds_and_units_vary(seed_sd, unit_sd):
    draws = scores(np.random.default_rng(1), seed_sd, unit_sd, draws=2000)
    zero = np.zeros_like(draws[0])
    covered = 0
    for one in draws:
        low, high = spread(one, zero, UNIT_OF).interval(0.95)
        covered += low <= 0 <= high
    assert covered / 2000 >= 0.93
    assert covered / 2000 < 1


def test_an_error_of_seeds_alone_or_units_alone_would_not_cover():
    """That both count: the interval grows with either."""
    zero = np.zeros((SEEDS, UNITS * ITEMS))

    def width(seed_sd: float, unit_sd: float) -> float:
        low, high = spread(scores(np.random.default_rng(0), seed_sd, unit_sd, 0.1)[0], zero, UNIT_OF).interval(0.95)
        return high - low

    assert width(1.0, 0.0) > 3 * width(0.0, 0.0)
    assert width(0.0, 1.0) > 3 * width(0.0, 0.0)


values = st.floats(-1, 1).filter(lambda x: x == 0 or abs(x) > 1e-6)
variances = st.floats(1e-6, 1)


@given(values, variances, variances, st.integers(2, 9), st.integers(2, 90))
def test_p_value_agrees_with_the_interval(mean, of_seeds, of_units, num_seeds, num_units):
    found = Spread(mean, of_seeds, of_units, num_seeds, num_units)
    p = found.p_value()
    assert 0 <= p <= 1
    if abs(p - 0.05) < 1e-9:
        return
    low, high = found.interval(0.95)
    assert (p < 0.05) == (not low <= 0 <= high)
    assert (found.p_above(0.1) < 0.025) == (high < 0.1) or abs(found.p_above(0.1) - 0.025) < 1e-9


def test_without_variance_the_rule_of_three_stands_in():
    zero = np.zeros((3, 4))
    same, other = spread(zero, zero, list("abcd")), spread(zero + 0.25, zero, list("abcd"))
    half = -math.log(0.025) / 4
    assert same.interval(0.95) == pytest.approx((-half, half))
    assert (1 - half) ** 4 < 0.025  # a share of units as large as this is met
    wide = np.zeros((3, 200))
    assert spread(wide, wide, [str(i) for i in range(200)]).interval(0.95)[1] == pytest.approx(3.69 / 200, abs=1e-4)
    assert spread(zero, zero, list("abcd"), is_score=False).interval(0.95) == (0.0, 0.0)
    assert same.p_value() == 1.0
    assert other.interval(0.95) == pytest.approx((0.25 - half, 0.25 + half))
    assert other.p_value() == pytest.approx(2 * math.exp(-4 * 0.25))
    assert (other.p_above(0.25), other.p_above(0.26)) == (1.0, pytest.approx(math.exp(-4 * 0.01)))
    for mean in (0.9 * half, 1.1 * half):  # p-value and interval agree
        found = spread(zero + mean, zero, list("abcd"))
        assert (found.p_value() < 0.05) == (found.interval(0.95)[0] > 0) == (mean > half)
    assert other.error_and_df() == (0.0, math.inf)


def test_more_seeds_or_units_leave_mean_and_variances():
    found = Spread(0.1, 0.02, 0.3, 5, 40)
    more = found.scaled(10, 80)
    assert (more.mean, more.seed_variance, more.unit_variance) == (0.1, 0.02, 0.3)
    assert more.error_and_df()[0] == pytest.approx(found.error_and_df()[0] / math.sqrt(2))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == pytest.approx([1.0, 1.0])
    assert holm([0.02, 0.02]) == pytest.approx([0.04, 0.04])
    assert holm([0.3]) == [0.3]
    assert holm([]) == []
    assert holm([0.01, 0.04], family=6) == pytest.approx([0.06, 0.2])


@given(st.lists(st.integers(0, 997).map(lambda k: k / 997), min_size=1, max_size=8), st.integers(1, 1008))
def test_holm_rejects_what_stepping_down_rejects(p_values, number):
    """From the smallest p-value on: reject while it is at most alpha over the hypotheses left, then stop."""
    alpha = number / 1009
    rejected, order = set(), sorted(range(len(p_values)), key=lambda i: p_values[i])
    for rank, i in enumerate(order):
        if p_values[i] * (len(p_values) - rank) > alpha:
            break
        rejected.add(i)
    adjusted = holm(p_values)
    assert {i for i, p in enumerate(adjusted) if p <= alpha} == rejected
    assert all(p <= a <= 1 for p, a in zip(p_values, adjusted, strict=True))
