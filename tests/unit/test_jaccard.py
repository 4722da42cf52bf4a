"""Jaccard's chance level: against enumeration in exact fractions, against simulation, and the limits that are known."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from pkt.errors import ShapeError
from pkt.extract.jaccard import block_jaccard, chance_of_blocks, chance_of_sets, corrected, jaccard


def enumerated(k1: int, k2: int, num: int) -> tuple[Fraction, Fraction]:
    """Mean and variance over every pair of sets."""
    sets = [[set(c) for c in itertools.combinations(range(num), k)] for k in (k1, k2)]
    found = [Fraction(len(a & b), len(a | b)) for a in sets[0] for b in sets[1]]
    mean = sum(found) / len(found)
    return mean, sum((x - mean) ** 2 for x in found) / len(found)


@pytest.mark.parametrize(
    ("k1", "k2", "num"), [(1, 1, 4), (2, 2, 5), (3, 3, 6), (4, 4, 6), (2, 4, 6), (5, 3, 7), (6, 6, 6), (0, 2, 4)]
)
def test_chance_of_sets_is_the_mean_over_all_sets(k1, k2, num):
    found, (mean, variance) = chance_of_sets(k1, k2, num), enumerated(k1, k2, num)
    assert found.mean == pytest.approx(float(mean), abs=1e-12)
    assert found.sd == pytest.approx(math.sqrt(variance), abs=1e-7)


def test_chance_of_sets_in_a_large_layer_against_exact_fractions():
    """The FFN of a 13B model, a tenth of it."""
    k, num = 1382, 13824
    ways = [math.comb(k, i) * math.comb(num - k, k - i) for i in range(k + 1)]
    exact = sum(Fraction(way * i, 2 * k - i) for i, way in enumerate(ways)) / math.comb(num, k)
    assert chance_of_sets(k, k, num).mean == pytest.approx(float(exact), rel=1e-9)


@pytest.mark.parametrize(("k1", "k2", "num"), [(25, 25, 256), (9, 14, 96)])
def test_chance_of_sets_against_simulation(k1, k2, num):
    gen, draws = np.random.default_rng(0), 4000
    found = [jaccard(gen.choice(num, k1, replace=False), gen.choice(num, k2, replace=False)) for _ in range(draws)]
    chance = chance_of_sets(k1, k2, num)
    assert np.mean(found) == pytest.approx(chance.mean, abs=4 * chance.sd / math.sqrt(draws))
    assert np.std(found) == pytest.approx(chance.sd, rel=0.06)


def test_jaccard_of_known_sets():
    assert jaccard([3, 1, 2], [2, 3, 1]) == 1
    assert jaccard([1, 2], [3, 4]) == 0
    assert jaccard([1, 2, 3], [3, 4]) == 0.25
    assert jaccard([], []) == 1
    assert corrected(1.0, 0.2) == 1
    assert corrected(0.2, 0.2) == 0
    assert corrected(1.0, 1.0) is None


def test_larger_sets_than_there_are_elements_are_refused():
    with pytest.raises(ShapeError, match="sets of 3 and 5 cannot be drawn from 4"):
        chance_of_sets(3, 5, 4)


def cells(corner: tuple[int, int], shape: tuple[int, int]) -> set[tuple[int, int]]:
    return {(corner[0] + i, corner[1] + j) for i in range(shape[0]) for j in range(shape[1])}


@pytest.mark.parametrize(
    ("shape", "matrix", "step"),
    [((2, 3), (4, 5), (1, 1)), ((2, 2), (2, 7), (1, 1)), ((3, 3), (3, 3), (1, 1)), ((2, 3), (6, 4), (2, 1))],
)
def test_blocks_against_their_entries_and_all_places(shape, matrix, step):
    places = [range(0, have - size + 1, by) for size, have, by in zip(shape, matrix, step, strict=True)]
    corners = list(itertools.product(*places))
    found = []
    for one, other in itertools.product(corners, corners):
        a, b = cells(one, shape), cells(other, shape)
        index = block_jaccard(one, other, shape)
        assert index == pytest.approx(len(a & b) / len(a | b))
        found.append(index)
    chance = chance_of_blocks(shape, matrix, step)
    assert chance.mean == pytest.approx(np.mean(found))
    assert chance.sd == pytest.approx(np.std(found), abs=1e-7)


def test_a_block_larger_than_the_matrix_is_refused():
    with pytest.raises(ShapeError, match="a block of 3 x 2 is not inside a matrix of 2 x 5"):
        chance_of_blocks((3, 2), (2, 5))
