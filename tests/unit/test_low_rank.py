"""Two factors of a matrix, against torch's decomposition."""

import pytest
import torch

from pkt.align.low_rank import low_rank


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def decaying(rows, columns):
    """A matrix whose singular values fall by a tenth each."""
    size = min(rows, columns)
    u = torch.linalg.qr(torch.randn(rows, size, generator=gen(1)))[0]
    v = torch.linalg.qr(torch.randn(columns, size, generator=gen(2)))[0]
    return (u * 0.9 ** torch.arange(size)) @ v.T


@pytest.mark.parametrize("shape", [(30, 20), (20, 30), (24, 24)])
@pytest.mark.parametrize("split", ["left", "both"])
def test_product_is_the_best_approximation(shape, split):
    matrix = decaying(*shape)
    pair = low_rank(matrix, 5, split=split, method="exact", gen=gen())
    u, s, v = torch.linalg.svd(matrix.double())
    torch.testing.assert_close(pair.entries().double(), (u[:, :5] * s[:5]) @ v[:5], rtol=1e-4, atol=1e-5)
    assert (pair.a.shape, pair.b.shape) == ((5, shape[1]), (shape[0], 5))
    norms = pair.a.norm(dim=1), pair.b.norm(dim=0)
    torch.testing.assert_close(norms[0], torch.ones(5) if split == "left" else s[:5].sqrt().float(), rtol=1e-4, atol=1e-5)  # fmt: skip
    torch.testing.assert_close(norms[1], s[:5].float() if split == "left" else s[:5].sqrt().float(), rtol=1e-4, atol=1e-5)  # fmt: skip


@pytest.mark.parametrize("shape", [(120, 90), (90, 120)])
def test_randomised_is_near_the_exact_one_and_repeats(shape):
    matrix, state = decaying(*shape), torch.get_rng_state()
    exact = low_rank(matrix, 8, split="left", method="exact", gen=gen())
    one, two = (low_rank(matrix, 8, split="left", method="randomized", gen=gen(3)) for _ in range(2))
    torch.testing.assert_close(one.entries(), exact.entries(), rtol=1e-3, atol=1e-4)
    assert torch.equal(one.b, two.b)
    assert torch.equal(torch.get_rng_state(), state)
