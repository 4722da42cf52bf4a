"""Measures of similarity from Grams alone, for all pairs of layers at once.

Every measure here is the inner product of two matrices, of which each is made of one model's Gram (`forms` below). So all pairs
of layers cost one matrix product, and a permutation of positions is a permutation of the rows and columns of one form.

* `cka_biased`: linear CKA (Kornblith et al. 2019, arXiv:1905.00414, equation 4). Form: the centred Gram over its norm.
* `cka`: debiased linear CKA (Nguyen et al. 2021, arXiv:2010.15327; Murphy et al. 2024, arXiv:2405.01012). Form: the U-centred Gram
  over its norm; the inner product of two U-centred Grams over n (n - 3) is the unbiased HSIC of Song et al. 2012 (JMLR 13,
  equation 5).
* `rsa`: Spearman's correlation of the squared Euclidean distances of all pairs of positions, K_ii + K_jj - 2 K_ij (Kriegeskorte et
  al. 2008). Ranks make squared distances and distances the same. Form: the centred ranks over their norm, 0 on the diagonal.
  Sorting is done once, in `distance_levels`; ranks among fewer positions follow by counting.
* `ridge`: R2 of ridge regression from source to target on held-out positions, of texts that the map was not fitted on. The
  residual is linear in the target's features, so its squared sum follows from the target's Gram. See `ridge_source`.

P positions, L layers of a model, Ls and Lt those of source and target, F positions that a map is fitted on, H held-out ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Form = Callable[[Tensor], Tensor]
"""One Gram, (P, P) float64 -> its form, (P, P) float64."""


def _as_it_is(gram_PP: Tensor) -> Tensor:
    return gram_PP


@dataclass(frozen=True)
class Measure:
    """The forms of source and target of which a measure is the inner product."""

    source: Form
    target: Form
    prepare: Form = _as_it_is
    """What forms read in place of a Gram; rows and columns of it can be dropped like a Gram's."""

    def __call__(self, source_LPP: Tensor, target_LPP: Tensor) -> Tensor:
        """The measure for all pairs of layers, from their Grams, (Ls, Lt) float64."""
        return self.of_prepared(each(self.prepare, source_LPP), each(self.prepare, target_LPP))

    def of_prepared(self, source_LPP: Tensor, target_LPP: Tensor) -> Tensor:
        """The same from what `prepare` gave."""
        return inner(each(self.source, source_LPP), each(self.target, target_LPP))


def each(form: Form, grams_LPP: Tensor) -> Tensor:
    """The form of every layer's Gram, (L, P, P) float64."""
    return torch.stack([form(gram_PP.double()) for gram_PP in grams_LPP])


def inner(source_LPP: Tensor, target_LPP: Tensor) -> Tensor:
    """Inner products for all pairs of layers, (Ls, Lt)."""
    return source_LPP.flatten(1) @ target_LPP.flatten(1).T


def biased(gram_PP: Tensor) -> Tensor:
    """The centred Gram of norm 1."""
    rows_P = gram_PP.mean(1)
    return _of_norm_one(gram_PP - rows_P[:, None] - rows_P + rows_P.mean())


def debiased(gram_PP: Tensor) -> Tensor:
    """The U-centred Gram of norm 1: its diagonal is 0, and every row sums to 0."""
    num = len(gram_PP)
    off_PP = gram_PP.clone().fill_diagonal_(0)
    rows_P = off_PP.sum(1) / (num - 2)
    off_PP += rows_P.sum() / (num - 1) - rows_P[:, None] - rows_P
    return _of_norm_one(off_PP.fill_diagonal_(0))


def distance_levels(gram_PP: Tensor) -> Tensor:
    """Squared distances as whole numbers in their order, equal ones equal, from 1 on; 0 on the diagonal. (P, P) float64."""
    square_P = gram_PP.diagonal()
    first, second = torch.triu_indices(len(gram_PP), len(gram_PP), 1)
    distances, order = (square_P[first] + square_P[second] - 2 * gram_PP[first, second]).sort()
    level = torch.ones(len(order), dtype=gram_PP.dtype)
    level[1:] += (distances[1:] > distances[:-1]).cumsum(0)
    found_PP = torch.zeros_like(gram_PP)
    found_PP[first[order], second[order]] = level
    return found_PP + found_PP.T


def distance_ranks(levels_PP: Tensor) -> Tensor:
    """From `distance_levels` the ranks of distances among these positions, centred, of norm 1; ties have their mean rank."""
    whole_PP = levels_PP.long()
    counts = whole_PP.flatten().bincount()
    counts[0] = 0  # the diagonal
    ranks = counts.cumsum(0) - (counts - 1) / 2
    found_PP = ranks.to(levels_PP.dtype)[whole_PP]
    found_PP -= found_PP.fill_diagonal_(0).sum() / (len(found_PP) * (len(found_PP) - 1))
    return _of_norm_one(found_PP.fill_diagonal_(0))


def _of_norm_one(form_PP: Tensor) -> Tensor:
    """Divided by its norm; zeros, the form of a constant output, stay zeros."""
    norm = form_PP.norm()
    return form_PP / norm if norm > 0 else form_PP


def ridge_source(gram_PP: Tensor, held_P: Tensor, ridge: float, width: int) -> Tensor:
    """What of the target's variance on held-out positions ridge regression from this source explains, as a form.

    With features centred on the fitted positions, K the source's Gram and n_F of them, the prediction for held-out positions is
    M Y_F, M = K_HF (K_FF + penalty)^-1; the residual is W Y, W = (1 on held-out positions, -M on fitted ones), so its squared
    sum is the inner product of W'W with the target's Gram. The total sum of squares is that of the centring matrix of
    held-out positions. The form is the difference of the two matrices.

    Args:
        held_P: whether a position is held out.
        ridge: relative to the mean variance of a feature, as in `pkt.align.activations.fit`. width: number of features.
    """
    is_fitted_P = (~held_P).double()
    mean_P = is_fitted_P / is_fitted_P.sum()
    from_mean_P = gram_PP @ mean_P
    k_PP = gram_PP - from_mean_P[:, None] - from_mean_P + mean_P @ from_mean_P
    k_FF, k_HF = k_PP[~held_P][:, ~held_P], k_PP[held_P][:, ~held_P]
    penalty = (ridge * k_FF.trace() / width).clamp_min(torch.finfo(torch.float64).tiny)
    weights_HF = torch.linalg.solve(k_FF + penalty * torch.eye(len(k_FF), dtype=k_FF.dtype), k_HF.T).T
    residual_HP = torch.zeros(len(k_HF), len(gram_PP), dtype=gram_PP.dtype)
    residual_HP[:, held_P] = torch.eye(len(k_HF), dtype=gram_PP.dtype)
    residual_HP[:, ~held_P] = -weights_HF
    residual_HP -= residual_HP.sum(1, keepdim=True) * mean_P
    return _centring(held_P) - residual_HP.T @ residual_HP


def ridge_target(gram_PP: Tensor, held_P: Tensor) -> Tensor:
    """The target's Gram over its sum of squares on held-out positions; zeros where that is 0."""
    total = (_centring(held_P) * gram_PP).sum()
    return gram_PP / total if total > 0 else torch.zeros_like(gram_PP)


def _centring(held_P: Tensor) -> Tensor:
    """What gives the sum of squares about their mean of held-out positions as an inner product with a Gram, (P, P)."""
    is_held_P = held_P.double()
    return is_held_P.diag() - is_held_P[:, None] * is_held_P / is_held_P.sum()


CKA = Measure(debiased, debiased)
CKA_BIASED = Measure(biased, biased)
RSA = Measure(distance_ranks, distance_ranks, distance_levels)


def ridge_measure(held_P: Tensor, ridge: float, width: int) -> Measure:
    """R2 on held-out positions; 1 is a perfect map, 0 the mean of the held-out positions, and below 0 is worse than that."""

    def source(gram_PP: Tensor) -> Tensor:
        return ridge_source(gram_PP, held_P, ridge, width)

    def target(gram_PP: Tensor) -> Tensor:
        return ridge_target(gram_PP, held_P)

    return Measure(source, target)
