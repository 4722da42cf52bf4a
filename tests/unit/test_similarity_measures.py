"""Similarity from Grams against feature space, and against cases where the answer is known."""

from __future__ import annotations

import pytest
import torch

from pkt.similarity.grams import gram
from pkt.similarity.measures import biased, cosines, debiased


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
    found = cosines(biased(stack(xs)), biased(stack(ys)))
    assert found.shape == (2, 3)
    for i, x in enumerate(xs):
        for j, y in enumerate(ys):
            x0, y0 = x - x.mean(0), y - y.mean(0)
            expected = (y0.T @ x0).norm() ** 2 / ((x0.T @ x0).norm() * (y0.T @ y0).norm())
            assert found[i, j] == pytest.approx(float(expected), abs=1e-6)


def test_debiased_is_the_published_estimator():
    xs, ys = features(16, 5, 7), features(16, 4, 9, seed=1)
    found = cosines(debiased(stack(xs)), debiased(stack(ys)))
    for i, x in enumerate(xs):
        for j, y in enumerate(ys):
            k, m = x @ x.T, y @ y.T  # not centred: the estimator does not depend on it
            expected = unbiased_hsic(k, m) / (unbiased_hsic(k, k) * unbiased_hsic(m, m)) ** 0.5
            assert found[i, j] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("form", [biased, debiased])
def test_itself_rotated_and_scaled_is_one(form):
    (x,) = features(30, 6)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)).Q
    (other,) = features(30, 6, seed=3)
    found = cosines(form(stack([x, other])), form(stack([x, 5 * x @ rotation - 2, other])))
    assert found[0, :2].tolist() == pytest.approx([1, 1], abs=1e-6)
    assert found[1, 2] == pytest.approx(1, abs=1e-6)
    assert found[0, 2] < 0.9
    stretched = x * torch.tensor([9.0, 1, 1, 1, 1, 1], dtype=torch.float64)
    assert cosines(form(stack([x])), form(stack([stretched]))).item() < 0.9  # no other linear map leaves it at one


def test_independent_noise_is_near_0_only_once_debiased():
    xs, ys = features(128, *[64] * 4), features(128, *[96] * 4, seed=1)
    debiased_, biased_ = (cosines(form(stack(xs)), form(stack(ys))) for form in (debiased, biased))
    assert debiased_.abs().max() < 0.1
    assert abs(debiased_.mean()) < 0.02
    assert biased_.min() > 0.3


def test_a_constant_output_is_like_nothing():
    (x,) = features(20, 5)
    assert cosines(debiased(stack([x])), debiased(torch.zeros(1, 20, 20))).item() == 0


def test_a_far_mean_costs_no_digits():
    (x,) = features(40, 8)
    far = (x + 4096).float()  # features as a model gives them
    exact = gram(far.double() - 4096)
    assert (gram(far) - exact).abs().max() < 1e-6 * exact.abs().max()
    centred_later = biased((far @ far.T)[None])[0]
    assert (centred_later - biased(exact[None])[0]).abs().max() > 1e-3  # float32 inner products first: they are lost
