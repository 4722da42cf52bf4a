"""Two weight matrices compared: their directions, their subspaces, and the energy that few directions keep. In float64.

R rows, C columns, r rank, d dimension of the space that subspaces lie in.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

ROUNDING = 1e-5
"""A remainder below this share of the weight's norm is what rounding left."""


@dataclass(frozen=True)
class StartCosines:
    """How a start `B0 A0` lies to a weight W. Norms are Frobenius norms."""

    own: float | None
    """Cosine with W; None where the start is zero."""
    remainder: float | None
    """Cosine with `W - B0 A0`; None where one of the two is zero, but for rounding."""
    start_norm: float | None
    """`|B0 A0| / |W|`; None where the weight is zero."""
    remainder_norm: float | None
    """`|W - B0 A0| / |W|`."""

    @property
    def of_norms(self) -> float | None:
        """`-|B0 A0| / |W - B0 A0|`: the cosine with the remainder of every start whose cosine with W is zero."""
        if self.remainder is None or not self.start_norm or not self.remainder_norm:
            return None
        return -self.start_norm / self.remainder_norm


def cosine(one: Tensor, other: Tensor) -> float | None:
    """Cosine of two matrices as flat vectors; None where one is zero."""
    a, b = one.double().flatten(), other.double().flatten()
    norms = a.norm() * b.norm()
    return float(a @ b / norms) if norms > 0 else None


def start_cosines(weight_RC: Tensor, start_RC: Tensor) -> StartCosines:
    """How a start lies to a weight (LaTen, arXiv:2505.14436, its analysis of Seeking and PiSSA).

    With `c` the cosine with W, the cosine with the remainder is `(c |W| - |B0 A0|) / |W - B0 A0|`, whatever the two are.
    """
    weight, start = weight_RC.double(), start_RC.double()
    remainder, norm = weight - start, weight.norm()
    sizes = [float(t.norm() / norm) if norm > 0 else None for t in (start, remainder)]
    is_left = sizes[1] is None or sizes[1] > ROUNDING
    return StartCosines(cosine(start, weight), cosine(start, remainder) if is_left else None, *sizes)


def subspace_cosines(one_dr: Tensor, other_dr: Tensor) -> Tensor:
    """Cosines of the principal angles between two column spaces, the largest first (Bjorck & Golub 1973).

    Args: matrices of full column rank; their columns need not be orthonormal.
    Returns: (smaller number of columns,) float64, in [0, 1].
    """
    q_one, q_other = (torch.linalg.qr(t.double()).Q for t in (one_dr, other_dr))
    return torch.linalg.svdvals(q_one.T @ q_other).clamp(max=1.0)


def chance_square(dimension: int, one: int, other: int) -> float:
    """Expected mean squared cosine of the principal angles between a fixed subspace and a uniformly random one.

    The squares sum to the trace of the product of both projections, whose expectation is `one * other / d`.

    Args: dimension d of the space; dimensions of the two subspaces.
    """
    return max(one, other) / dimension


def random_cosines(dimension: int, rank: int, draws: int, gen: Generator) -> Tensor:
    """`subspace_cosines` of a fixed subspace with uniformly random ones, both of dimension r: (draws, r) float64, on the CPU."""
    found = []
    for _ in range(draws):
        q_dr = torch.linalg.qr(torch.randn(dimension, rank, generator=gen, dtype=torch.float64)).Q
        found.append(torch.linalg.svdvals(q_dr[:rank]).clamp(max=1.0))  # the fixed one: the first r axes
    return torch.stack(found)


def energy_kept(singular_K: Tensor, square: float) -> Tensor:
    """Share of a matrix's squared Frobenius norm that its best approximation of rank 1, 2, ..., K keeps: (K,) float64.

    Args:
        singular_K: its largest singular values, in falling order. square: its squared norm; a matrix of zeros keeps nothing.
    """
    return singular_K.double().square().cumsum(0) / (square or 1.0)
