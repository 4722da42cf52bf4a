"""Similarity from Grams against feature space, and against cases where the answer is known."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import spearmanr

from pkt.align.activations import fit
from pkt.similarity.grams import gram
from pkt.similarity.measures import CKA, CKA_BIASED, RSA, biased, distance_levels, each, ridge_measure


def features(num: int, *widths: int, seed: int = 0) -> list[torch.Tensor]:
    gen = torch.Generator().manual_seed(seed)
    return [torch.randn(num, width, generator=gen, dtype=torch.float64) + 3 for width in widths]


def stack(xs: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([gram(x) for x in xs])


def unbiased_hsic(k: torch.Tensor, m: torch.Tensor) -> float:
    """Song et al. 2012, equation 5, term by term."""
    n = len(k)
    k, m = k.clone().fill_diagonal_(0), m.clone().fill_diagonal_(0)
    first = sum(float(k[i, j] * m[i, j]) for i in range(n) for j in range(n))
    second = float(k.sum() * m.sum()) / ((n - 1) * (n - 2))
    third = 2 / (n - 2) * sum(float(k[i].sum() * m[i].sum()) for i in range(n))
    return (first + second - third) / (n * (n - 3))


def test_biased_is_the_feature_space_form():
    xs, ys = features(20, 5, 7), features(20, 4, 9, 3, seed=1)
    found = CKA_BIASED(stack(xs), stack(ys))
    assert found.shape == (2, 3)
    for i, x in enumerate(xs):
        for j, y in enumerate(ys):
            x0, y0 = x - x.mean(0), y - y.mean(0)
            expected = (y0.T @ x0).norm() ** 2 / ((x0.T @ x0).norm() * (y0.T @ y0).norm())
            assert found[i, j] == pytest.approx(float(expected), abs=1e-6)


def test_debiased_is_the_published_estimator():
    xs, ys = features(16, 5, 7), features(16, 4, 9, seed=1)
    found = CKA(stack(xs), stack(ys))
    for i, x in enumerate(xs):
        for j, y in enumerate(ys):
            k, m = x @ x.T, y @ y.T  # not centred: the estimator does not depend on it
            expected = unbiased_hsic(k, m) / (unbiased_hsic(k, k) * unbiased_hsic(m, m)) ** 0.5
            assert found[i, j] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("measure", [CKA, CKA_BIASED, RSA], ids=["cka", "biased", "rsa"])
def test_itself_rotated_and_scaled_is_one(measure):
    (x,) = features(30, 6)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)).Q
    (other,) = features(30, 6, seed=3)
    found = measure(stack([x, other]), stack([x, 5 * x @ rotation - 2, other]))
    assert found[0, :2].tolist() == pytest.approx([1, 1], abs=1e-5)
    assert found[1, 2] == pytest.approx(1, abs=1e-6)
    assert found[0, 2] < 0.9
    stretched = x * torch.tensor([9.0, 1, 1, 1, 1, 1], dtype=torch.float64)
    assert measure(stack([x]), stack([stretched])).item() < 0.95  # no other linear map leaves it at one


def test_independent_noise_is_near_0_only_once_debiased():
    xs, ys = features(128, *[64] * 4), features(128, *[96] * 4, seed=1)
    debiased_, biased_ = (measure(stack(xs), stack(ys)) for measure in (CKA, CKA_BIASED))
    assert debiased_.abs().max() < 0.1
    assert abs(debiased_.mean()) < 0.02
    assert biased_.min() > 0.3


@pytest.mark.parametrize("measure", [CKA, CKA_BIASED, RSA], ids=["cka", "biased", "rsa"])
def test_a_constant_output_is_like_nothing(measure):
    (x,) = features(20, 5)
    assert measure(stack([x]), torch.zeros(1, 20, 20)).item() == 0


def test_rsa_is_spearman_of_distances():
    xs, ys = features(24, 5, 7), features(24, 4, 9, seed=1)
    found = RSA(stack(xs), stack(ys))
    for i, x in enumerate(xs):
        for j, y in enumerate(ys):
            expected = spearmanr(torch.pdist(x), torch.pdist(y)).statistic
            assert found[i, j] == pytest.approx(expected, abs=1e-3)  # ranks of near ties


def test_rsa_gives_ties_their_mean_rank():
    x = torch.tensor([[0.0], [1], [3], [3], [4], [7]], dtype=torch.float64)  # exact in float32: many equal distances
    y = torch.tensor([[2.0], [1], [0], [5], [5], [6]], dtype=torch.float64)
    grams = [(x @ x.T)[None], (y @ y.T)[None]]
    assert RSA(*grams).item() == pytest.approx(spearmanr(torch.pdist(x), torch.pdist(y)).statistic, abs=1e-12)


def test_rsa_of_fewer_positions_needs_no_sorting():
    xs, ys = features(24, 5), features(24, 4, seed=1)
    kept = torch.tensor([0, 3, 4, 9, 10, 11, 17, 20])
    levels = [each(distance_levels, stack(z))[:, kept][:, :, kept] for z in (xs, ys)]
    direct = RSA(*(stack(z)[:, kept][:, :, kept] for z in (xs, ys)))
    assert RSA.of_prepared(*levels).item() == pytest.approx(direct.item(), abs=1e-12)


@pytest.mark.parametrize("ridge", [1e-3, 0.5])
def test_dual_ridge_is_primal_ridge(ridge):
    xs, ys = features(40, 5, 60), features(40, 4, 9, seed=1)  # fewer and more features than positions
    ys[0] += xs[0][:, :4]
    held = torch.arange(40) % 4 == 1
    for i, x in enumerate(xs):
        found = ridge_measure(held, ridge, x.shape[1])(stack([x]), stack(ys))
        for j, y in enumerate(ys):
            linear = fit(x[~held], y[~held], ridge)
            error = (y[held] - linear(x[held]).double()).pow(2).mean()
            r2 = 1 - error / (y[held] - y[held].mean(0)).pow(2).mean()
            assert found[0, j] == pytest.approx(float(r2), abs=1e-4), (i, j)


def test_ridge_finds_a_linear_map_and_is_no_better_than_the_mean_on_noise():
    (x,), (noise,) = features(200, 6), features(200, 3, seed=1)
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    held = torch.arange(200) % 4 == 0
    found = ridge_measure(held, 1e-4, 6)(stack([x, torch.zeros_like(x)]), stack([x @ weight + 7, noise, 0 * noise]))
    assert found[0, 0] > 0.999
    assert -0.2 < found[0, 1] < 0.1
    assert found[0, 2] == 0  # a constant target has no variance to explain
    assert -0.1 < found[1, 0] <= 1e-9  # a constant source predicts the mean of the fitted positions


def test_a_far_mean_costs_no_digits():
    (x,) = features(40, 8)
    far = (x + 4096).float()  # features as a model gives them
    exact = gram(far.double() - 4096)
    assert (gram(far) - exact).abs().max() < 1e-6 * exact.abs().max()
    rounded_first = biased((far @ far.T).double())
    assert (rounded_first - biased(exact.double())).abs().max() > 1e-3
