"""The search for a learning rate: its grid, how it grows, and where it ends."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from pkt.certify.search import MOST_EXTENSIONS, Search

FACTORS = [0.1, 0.3, 1.0, 3.0, 10.0]


def finished(loss: Callable[[float], float], centre: float = 1.0, factors: list[float] = FACTORS) -> Search:
    """A search that has run to its end, never asked for a rate twice, and asked for the grid at once."""
    search, first = Search(centre, factors), True
    while wanted := search.wanted():
        assert len(wanted) == (len(factors) if first else 1)
        first = False
        for lr in wanted:
            assert lr not in search.losses
            search.losses[lr] = loss(lr)
    return search


def bowl(best: float) -> Callable[[float], float]:
    return lambda lr: abs(math.log10(lr / best))


def test_the_grid_is_the_factors_around_the_centre():
    assert Search(3e-5, [10.0, 0.1, 1.0]).wanted() == [3e-6, 3e-5, 3e-4]


def test_a_grid_half_done_is_finished_first():
    search = Search(1.0, [0.1, 1.0, 10.0])
    search.losses[1.0] = 0.5
    assert search.wanted() == [0.1, 10.0]


def test_it_ends_where_the_best_is_inside():
    search = finished(bowl(1.0))
    assert sorted(search.losses) == FACTORS
    assert search.best() == 1.0
    assert not search.at_edge()


@pytest.mark.parametrize(
    ("best", "beyond"), [(100.0, [33.33, 111.1, 370.3]), (0.005, [0.03333, 0.01111, 0.003703, 0.001234])]
)
def test_it_grows_at_either_edge_by_the_step_there(best, beyond):
    search = finished(bowl(best))
    assert [lr for lr in search.losses if lr not in FACTORS] == beyond
    assert not search.at_edge()
    assert abs(math.log10(search.best() / best)) < 0.5


@pytest.mark.parametrize("sign", [-1, 1])
def test_it_stops_after_some_extensions_and_says_so(sign):
    search = finished(lambda lr: sign * lr)
    assert len(search.losses) == len(FACTORS) + MOST_EXTENSIONS
    assert search.at_edge()
    assert search.best() == (max if sign < 0 else min)(search.losses)


def test_rates_that_diverged_are_never_the_best_and_bound_the_search():
    search = finished(lambda lr: math.inf if lr > 1 else bowl(1.0)(lr))
    assert search.best() == 1.0
    assert sorted(search.losses) == FACTORS
    search = finished(lambda lr: math.inf if lr > 0.02 else bowl(0.01)(lr))
    assert math.isfinite(search.losses[search.best()])
    assert search.best() == pytest.approx(0.011, abs=0.001)
    assert max(search.losses) == 10.0


def test_if_all_diverged_it_looks_lower_and_then_gives_up():
    search = finished(lambda lr: math.inf)
    assert max(search.losses) == 10.0
    assert min(search.losses) < 1e-4
    assert math.isinf(search.losses[search.best()])


def test_the_lowest_of_equals_is_the_best():
    search = Search(1.0, [0.1, 1.0, 10.0, 100.0], {100.0: 0.4, 1.0: 0.4, 10.0: 0.4, 0.1: 0.5})
    assert search.best() == 1.0
    assert search.wanted() == []


def test_rates_are_found_again_after_a_round_trip_through_json():
    """Sums of factors in binary are not the numbers that stand in files."""
    for lr in finished(bowl(1e-9), centre=7e-3, factors=[0.1, 0.3]).losses:
        assert float(f"{lr:g}") == lr


@pytest.mark.parametrize("factors", [[1.0, 1.0], [1.0, 1.00001]])
def test_a_grid_of_one_point_ends(factors):
    search = Search(1.0, factors)
    for _ in range(20):
        wanted = search.wanted()
        if not wanted:
            break
        assert [lr for lr in wanted if lr in search.losses] == []
        search.losses |= {lr: lr for lr in wanted}
