"""Rows of the parametric analysis: one start and one weight, measured."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from pkt.similarity.starts import Row
from pkt.similarity.weights import StartCosines, chance_square, random_cosines, subspace_cosines

SIMULATED = 200
"""Random subspaces behind the chance level of an angle."""


def cosine_row(name: str, rank: int, found: StartCosines, kept: float) -> Row:
    """Measured cosines beside those predicted.

    Args: kept: root of the energy that the rank keeps of the weight.
    """
    known = found.own is not None
    return {
        "rank": rank,
        "own": found.own,
        "predicted_own": (kept if name == "pissa" else 0.0) if known else None,
        "remainder": found.remainder,
        "predicted_remainder": 0.0 if name == "pissa" and found.remainder is not None else found.of_norms,
        "start_norm": found.start_norm,
        "remainder_norm": found.remainder_norm,
    }


def angle_row(side: str, ours_dr: Tensor, theirs_dr: Tensor, *, is_zero: bool) -> Row:
    """Principal angles of two column spaces, with what random ones have.

    Args: side: `left` or `right`. is_zero: ours is of a matrix of zeros, which has no directions.
    """
    dimension, rank = ours_dr.shape
    cosines = None if is_zero else subspace_cosines(ours_dr, theirs_dr)
    return {
        "side": side,
        "dimension": dimension,
        "rank": rank,
        "mean_square": None if cosines is None else float(cosines.square().mean()),
        "chance_mean_square": chance_square(dimension, rank, theirs_dr.shape[1]),
        "largest": None if cosines is None else float(cosines.max()),
    }


def chance_rows(angles: Sequence[Row], gen: Generator) -> list[Row]:
    """The level of random subspaces, for every dimension and rank that occur: exact mean, simulated 95 % range."""
    found = []
    for dimension, rank in sorted({(row["dimension"], row["rank"]) for row in angles}):
        cosines = random_cosines(dimension, rank, SIMULATED, gen)
        row: Row = {"dimension": dimension, "rank": rank, "mean_square": chance_square(dimension, rank, rank)}
        for name, values in (("mean_square", cosines.square().mean(1)), ("largest", cosines.max(1).values)):
            low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
            row |= {f"{name}_simulated": float(values.mean()), f"{name}_low": low, f"{name}_high": high}
        found.append(row)
    return found
