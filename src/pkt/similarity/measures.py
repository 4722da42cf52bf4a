"""Measures of similarity from Grams alone, for all pairs of layers at once.

Three of them are cosines of two matrices that are made of one Gram each (`forms`), so that a pair costs one inner product and
a permutation of positions is a permutation of rows and columns:

* biased linear CKA (Kornblith et al. 2019, arXiv:1905.00414, equation 4): the centred Grams;
* debiased linear CKA (Nguyen et al. 2021, arXiv:2010.15327; Murphy et al. 2024, arXiv:2405.01012): the U-centred Grams, of which
  the inner product over n (n - 3) is the unbiased HSIC of Song et al. 2012 (JMLR 13, equation 5).

P positions, L layers of a model, Ls and Lt those of source and target.
"""

from __future__ import annotations

from torch import Tensor


def biased(grams_LPP: Tensor) -> Tensor:
    """Centred Grams of norm 1, (L, P, P) float64."""
    k_LPP = grams_LPP.double()
    k_LPP = k_LPP - k_LPP.mean(1, keepdim=True) - k_LPP.mean(2, keepdim=True) + k_LPP.mean((1, 2), keepdim=True)
    return _of_norm_one(k_LPP)


def debiased(grams_LPP: Tensor) -> Tensor:
    """U-centred Grams of norm 1, (L, P, P) float64: with a diagonal of 0, every row sums to 0."""
    num = grams_LPP.shape[-1]
    k_LPP = grams_LPP.double().clone()
    k_LPP.diagonal(dim1=1, dim2=2).zero_()
    rows_LP = k_LPP.sum(2) / (num - 2)
    total_L11 = rows_LP.sum(1)[:, None, None] / (num - 1)
    k_LPP += total_L11 - rows_LP[:, :, None] - rows_LP[:, None, :]
    k_LPP.diagonal(dim1=1, dim2=2).zero_()
    return _of_norm_one(k_LPP)


def cosines(source_LPP: Tensor, target_LPP: Tensor) -> Tensor:
    """Inner products of forms of norm 1 for all pairs of layers, (Ls, Lt)."""
    return source_LPP.flatten(1) @ target_LPP.flatten(1).T


def _of_norm_one(k_LPP: Tensor) -> Tensor:
    """Divided by the norm; a form of zeros, of a constant output, stays one."""
    norm_L11 = k_LPP.flatten(1).norm(dim=1)[:, None, None]
    return k_LPP / norm_L11.where(norm_L11 > 0, 1)
