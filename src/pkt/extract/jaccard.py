"""How far two choices agree: the Jaccard index of two sets or two blocks, and what chance alone would give, exactly.

The Jaccard index is the size of the intersection over that of the union: 1 for equal sets, 0 for disjoint ones.

Two sets of k1 and k2 out of N share i elements with the hypergeometric probability C(k1, i) C(N - k1, k2 - i) / C(N, k2), and then their
index is i / (k1 + k2 - i). Two blocks of r x c whose corners are drawn from n places along an axis are d places apart there with
probability 1/n (d = 0) or 2 (n - d) / n^2, and where they overlap they share (r - d1) (c - d2) entries. `Chance` sums over all i, or over all d1 and d2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.special import gammaln

from pkt.errors import ShapeError


class Chance(NamedTuple):
    """What independent random choices give."""

    mean: float
    """The expected index."""
    sd: float
    """Its standard deviation over draws, of one pair."""


def jaccard(one: Sequence[int] | np.ndarray, other: Sequence[int] | np.ndarray) -> float:
    """Index of two sets, each without repeats; two empty ones are equal."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    union = len(one) + len(other) - shared
    return shared / union if union else 1.0


@lru_cache(maxsize=256)
def chance_of_sets(k1: int, k2: int, num: int) -> Chance:
    """Of two sets of k1 and k2 elements, drawn from `num`.

    Raises:
        ShapeError: a set is larger than what it is drawn from.
    """
    if not 0 <= k1 <= num or not 0 <= k2 <= num:
        raise ShapeError(f"sets of {k1} and {k2} cannot be drawn from {num}; expected 0 to {num} elements")
    if k1 + k2 == 0:
        return Chance(1.0, 0.0)
    shared = np.arange(max(0, k1 + k2 - num), min(k1, k2) + 1, dtype=np.float64)
    weight = np.exp(_log_choose(k1, shared) + _log_choose(num - k1, k2 - shared) - _log_choose(num, k2))
    return _moments(shared / (k1 + k2 - shared), weight)


def block_jaccard(one: tuple[int, int], other: tuple[int, int], shape: tuple[int, int]) -> float:
    """Index of two blocks of one shape, by their first rows and columns."""
    shared = math.prod(max(0, size - abs(a - b)) for a, b, size in zip(one, other, shape, strict=True))
    return shared / (2 * math.prod(shape) - shared)


@lru_cache(maxsize=256)
def chance_of_blocks(shape: tuple[int, int], matrix: tuple[int, int], step: tuple[int, int] = (1, 1)) -> Chance:
    """Of two blocks of one shape, each anywhere in a matrix.

    Args: step rows and columns between the places where a block may begin.
    Raises:
        ShapeError: the block does not fit into the matrix.
    """
    if any(a > b for a, b in zip(shape, matrix, strict=True)):
        raise ShapeError(f"a block of {shape[0]} x {shape[1]} is not inside a matrix of {matrix[0]} x {matrix[1]}")
    overlap, weight = [], []
    for size, have, by in zip(shape, matrix, step, strict=True):
        places = (have - size) // by + 1
        apart = np.arange(places, dtype=np.float64)
        overlap.append(np.maximum(0, size - by * apart))
        weight.append(np.where(apart == 0, 1, 2 * (1 - apart / places)) / places)
    shared = np.outer(*overlap)
    return _moments(shared / (2 * math.prod(shape) - shared), np.outer(*weight))


def corrected(index: float, chance: float) -> float | None:
    """The index above chance as a share of what there is above it: 1 for equal sets, 0 at chance; None where chance is 1."""
    return (index - chance) / (1 - chance) if chance < 1 else None


def _log_choose(n: int, k: np.ndarray | int) -> np.ndarray:
    return gammaln(n + 1) - gammaln(np.asarray(k) + 1) - gammaln(n - np.asarray(k) + 1)


def _moments(index: np.ndarray, weight: np.ndarray) -> Chance:
    weight = weight / weight.sum()  # logarithms of large factorials leave 1e-11
    mean = float((index * weight).sum())
    return Chance(mean, float(np.sqrt((weight * (index - mean) ** 2).sum())))
