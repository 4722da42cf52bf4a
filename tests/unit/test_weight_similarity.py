"""Cosines, principal angles and energies of weights, against numpy, scipy and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from scipy.stats import binom

from pkt.align.low_rank import low_rank
from pkt.similarity.start_rows import cosine_row
from pkt.similarity.starts import module_rows, prediction_rows, random_rows
from pkt.similarity.weights import (
    chance_square,
    cosine,
    energy_kept,
    random_cosines,
    start_cosines,
    subspace_cosines,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def low(matrix, rank):
    return low_rank(matrix, rank, split="both", method="exact", gen=torch.Generator()).entries()


def test_cosines_are_those_of_flat_vectors():
    weight, start = normal(7, 5), normal(7, 5, seed=1)
    found = start_cosines(weight, start)
    w, s = weight.double().numpy().ravel(), start.double().numpy().ravel()

    def plain(a, b):
        return float(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))

    assert found.own == pytest.approx(plain(s, w), abs=1e-12)
    assert found.remainder == pytest.approx(plain(s, w - s), abs=1e-12)
    assert found.start_norm == pytest.approx(np.linalg.norm(s) / np.linalg.norm(w), abs=1e-12)
    assert found.remainder_norm == pytest.approx(np.linalg.norm(w - s) / np.linalg.norm(w), abs=1e-12)


def test_of_pissa_both_cosines_are_identities():
    weight = normal(30, 20)
    found = start_cosines(weight, low(weight, 4))
    values = np.linalg.svd(weight.numpy(), compute_uv=False)
    assert found.own == pytest.approx(math.sqrt((values[:4] ** 2).sum() / (values**2).sum()), abs=1e-5)
    assert found.remainder == pytest.approx(0, abs=1e-6)
    assert found.of_norms < -0.3  # what it would be of a matrix without a relation


@pytest.mark.parametrize("size", [0.1, 1.0, 3.0])
def test_the_cosine_with_the_remainder_of_an_unrelated_start_is_a_ratio_of_norms(size):
    weight = normal(300, 200)
    start = size * normal(300, 200, seed=1)
    found = start_cosines(weight, start)
    assert abs(found.own) < 0.01
    assert found.remainder == pytest.approx(found.of_norms, abs=0.01)
    assert found.of_norms == pytest.approx(-size / math.sqrt(1 + size**2), abs=0.01)
    assert found.remainder - found.of_norms == pytest.approx(found.own / found.remainder_norm, abs=1e-12)


def test_zero_has_no_direction():
    weight = normal(6, 4)
    nothing = start_cosines(weight, torch.zeros(6, 4))
    assert (nothing.own, nothing.remainder, nothing.of_norms) == (None, None, None)
    assert (nothing.start_norm, nothing.remainder_norm) == (0.0, 1.0)
    whole = start_cosines(weight, low(weight, 4))  # what is left is rounding
    assert whole.own == pytest.approx(1)
    assert (whole.remainder, whole.of_norms) == (None, None)
    empty = start_cosines(torch.zeros(6, 4), weight)
    assert (empty.own, empty.start_norm, empty.remainder_norm) == (None, None, None)
    assert cosine(weight, -2 * weight) == pytest.approx(-1)


@pytest.mark.parametrize(("dimension", "one", "other"), [(20, 3, 3), (20, 2, 5), (12, 6, 4)])
def test_principal_angles_are_scipys(dimension, one, other):
    a, b = normal(dimension, one), normal(dimension, other, seed=1)
    found = subspace_cosines(a, b)
    expected = np.cos(subspace_angles(a.double().numpy(), b.double().numpy()))
    assert found.numpy() == pytest.approx(np.sort(expected)[::-1], abs=1e-7)
    mixed = subspace_cosines(a @ normal(one, one, seed=2), b)  # the spaces count, not what spans them
    assert mixed.numpy() == pytest.approx(found.numpy(), abs=1e-5)
    assert subspace_cosines(a, a).numpy() == pytest.approx(np.ones(one), abs=1e-6)


@pytest.mark.parametrize(("dimension", "one", "other"), [(24, 3, 3), (24, 2, 6)])
def test_chance_level_of_the_mean_square(dimension, one, other):
    fixed = normal(dimension, one)
    means = [float(subspace_cosines(fixed, normal(dimension, other, seed=i + 1)).square().mean()) for i in range(800)]
    error = np.std(means) / math.sqrt(len(means))
    assert abs(np.mean(means) - chance_square(dimension, one, other)) < 4 * error
    assert error < 0.01


def test_random_subspaces_have_the_chance_level_of_a_fixed_one():
    found = random_cosines(24, 3, 800, torch.Generator().manual_seed(3))
    assert found.shape == (800, 3)
    assert bool((found.diff(dim=1) <= 0).all())
    means = found.square().mean(1)
    assert abs(float(means.mean()) - 3 / 24) < 4 * float(means.std()) / math.sqrt(800)
    other = [float(subspace_cosines(normal(24, 3, seed=i), normal(24, 3, seed=i + 5000)).max()) for i in range(800)]
    assert float(found[:, 0].mean()) == pytest.approx(np.mean(other), abs=0.02)


def test_energy_kept():
    matrix = normal(9, 6)
    values = torch.linalg.svdvals(matrix)
    kept = energy_kept(values, float(matrix.square().sum()))
    assert float(kept[-1]) == pytest.approx(1, abs=1e-6)
    assert bool((kept.diff() > 0).all())
    for rank in (1, 3):
        share = 1 - float((matrix - low(matrix, rank)).square().sum() / matrix.square().sum())
        assert float(kept[rank - 1]) == pytest.approx(share, abs=1e-5)
    assert energy_kept(torch.zeros(3), 0.0).tolist() == [0, 0, 0]


def rows(init, values, draw=0):
    """Cosines of one draw, a layer each."""
    return [
        {"init": init, "draw": draw, "layer": i, "module": "up", "own": v, "remainder": v, "start_norm": 1.0,
         "predicted_own": 0.0, "predicted_remainder": 0.0}
        for i, v in enumerate(values)
    ]  # fmt: skip


def test_a_random_start_lies_within_the_range_of_random_blocks_as_often_as_said():
    gen, draws, matrices = np.random.default_rng(0), 19, 4000
    cosines = [row for d in range(draws) for row in rows("random_block", gen.normal(size=matrices), d)]
    found = random_rows(cosines + rows("seeking", gen.normal(size=matrices)), [], lambda o, n, p: binom.sf(o - 1, n, p))
    own = next(row for row in found if row["quantity"] == "own")
    assert own["expected_inside"] == pytest.approx(0.9 * matrices)
    assert abs(own["inside"] - own["expected_inside"]) < 4 * math.sqrt(matrices * 0.9 * 0.1)
    far = random_rows(cosines + rows("seeking", [9.0] * matrices), [], lambda o, n, p: binom.sf(o - 1, n, p))
    assert far[0]["inside"] == 0
    assert far[0]["p_value"] < 1e-9


def test_of_a_weight_that_is_zero_nothing_is_predicted():
    starts = [start_cosines(weight, normal(6, 4, seed=1)) for weight in (normal(6, 4), torch.zeros(6, 4))]
    rows_ = [{"init": "seeking", "draw": 0, **cosine_row("seeking", 2, found, 0.5)} for found in starts]
    assert [row["matrices"] for row in prediction_rows(rows_)] == [1, 1]


def test_means_over_layers_and_the_range_of_draws():
    cosines = [*rows("seeking", [0.1, 0.3]), *rows("random_block", [0.0, 0.2]), *rows("random_block", [0.4, 0.6], 1)]
    seeking, block = module_rows(cosines)
    assert (seeking["own_mean"], seeking["own_low"], seeking["own_published"]) == (pytest.approx(0.2), None, 0.0)
    assert seeking["own_sd"] == pytest.approx(np.std([0.1, 0.3], ddof=1))
    assert seeking["remainder_published"] == -0.114
    assert (block["own_mean"], block["own_low"], block["own_high"]) == pytest.approx((0.1, 0.1, 0.5))
    gaps = {(row["init"], row["quantity"]): row["largest_gap"] for row in prediction_rows(cosines)}
    assert gaps["seeking", "own"] == pytest.approx(0.3)
    assert gaps["random_block", "remainder"] == pytest.approx(0.6)
