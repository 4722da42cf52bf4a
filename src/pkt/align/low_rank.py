"""The best approximation of a matrix by one of low rank, as two factors.

R rows, C columns, r rank.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Generator, Tensor

from pkt.align.finetune import training_seed
from pkt.inject.changes import LowRank
from pkt.randomness import own_randomness

OVERSAMPLING, ITERATIONS = 16, 8
"""Of the randomised decomposition: extra columns, and power iterations."""


def low_rank(
    matrix_RC: Tensor, rank: int, *, split: Literal["left", "both"], method: Literal["exact", "randomized"], gen: Generator
) -> LowRank:  # fmt: skip
    """`B A` of rank r that is nearest to a matrix.

    Args:
        split: where the singular values S of `U S V^T` go: `left`, B = U S and A = V^T (Seeking); `both`, the root of S to each (PiSSA).
        method: `exact`, a thin SVD; `randomized`, for large matrices.

    Returns: factors on the CPU, wherever the matrix is.
    """
    if method == "exact" or rank + OVERSAMPLING >= min(matrix_RC.shape):
        u_RK, s_K, v_KC = torch.linalg.svd(matrix_RC, full_matrices=False)
    else:
        with own_randomness(training_seed(gen)):
            u_RK, s_K, v_CK = torch.svd_lowrank(matrix_RC, rank + OVERSAMPLING, niter=ITERATIONS)
        v_KC = v_CK.T
    u_Rr, s_r, v_rC = u_RK[:, :rank], s_K[:rank], v_KC[:rank]
    left, right = (s_r, torch.ones_like(s_r)) if split == "left" else (s_r.sqrt(), s_r.sqrt())
    return LowRank((right[:, None] * v_rC).contiguous().cpu(), (u_Rr * left).contiguous().cpu())
