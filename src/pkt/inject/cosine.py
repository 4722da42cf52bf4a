"""How far two deltas point the same way: cosines over all entries, without making a row, a column or a low rank dense.

The inner product of two changes of one tensor is a sum over the entries that both change:

- lines of one axis: those that both name; a row with a column: the entry where they cross;
- `B A` with `B' A'`: the sum over the entries of `(B^T B')` times `(A A'^T)`;
- lines with `B A` or with a dense change: the named rows `B[i] A`, or columns, alone.

Two random directions with the norms of these changes in every tensor, each in its own lines, have cosine 0 on average, with variance
`sum over tensors of (w w')^2 s / (n n')`, where w is a tensor's share of a delta's norm, n and n' are the numbers of changed entries, and s
that of entries which both change: 1 / n for one tensor and equal lines. It holds for low rank too, if its directions are random.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pkt.errors import ShapeError
from pkt.inject.changes import Change, Dense, Lines, LowRank
from pkt.inject.delta import Delta, Key

CHUNK = 1 << 22
"""Entries that are widened to float64 at a time."""


class Product(NamedTuple):
    """Two changes of one tensor; what a delta does not change there is zero."""

    inner: float
    squares: tuple[float, float]
    """Squared norms."""
    shared: int
    """Entries that both change."""
    sizes: tuple[int, int]
    """Entries that each changes."""


class Cosine(NamedTuple):
    """A cosine, and the standard deviation that random directions would give it; None where a norm is zero."""

    value: float | None
    random_sd: float | None


def products(one: Delta, other: Delta) -> dict[Key, Product]:
    """By tensor, for `cosine` of some of them."""
    found = {}
    for key in dict.fromkeys([*one.changes, *other.changes]):
        a, b = one.changes.get(key), other.changes.get(key)
        squares = (inner(a, a) if a else 0.0, inner(b, b) if b else 0.0)
        sizes = (a.size() if a else 0, b.size() if b else 0)
        found[key] = Product(inner(a, b) if a and b else 0.0, squares, shared(a, b) if a and b else 0, sizes)
    return found


def cosine(found: Iterable[Product]) -> Cosine:
    """Of the tensors together."""
    held = list(found)
    norms = math.prod(math.sqrt(sum(p.squares[side] for p in held)) for side in (0, 1))
    if not norms:
        return Cosine(None, None)
    shares = (math.sqrt(math.prod(p.squares)) / norms for p in held)
    variance = sum(w**2 * p.shared / math.prod(p.sizes) for w, p in zip(shares, held, strict=True) if p.shared)
    return Cosine(sum(p.inner for p in held) / norms, math.sqrt(variance))


def inner(one: Change, other: Change) -> float:
    """Sum over all entries of the product, in float64.

    Raises:
        ShapeError: they are of tensors of different shapes.
    """
    if isinstance(one, Lines):
        return _lines(one, other) if isinstance(other, Lines) else _dot(one.values, _named(other, one))
    if isinstance(other, Lines):
        return _dot(_named(one, other), other.values)
    if isinstance(one, Dense):
        return _dot(one.values, other.values) if isinstance(other, Dense) else _dense(one, other)
    return _dense(other, one) if isinstance(other, Dense) else _low_rank(one, other)


def shared(one: Change, other: Change) -> int:
    """Entries that both change."""
    if isinstance(one, Lines) and isinstance(other, Lines):
        if one.axis != other.axis:
            return len(one.index) * len(other.index)
        return len(_common(one, other)[0]) * one.values.shape[1]
    return min(one.size(), other.size())


def _lines(one: Lines, other: Lines) -> float:
    if one.axis == other.axis:
        _check(one.values.shape[1] == other.values.shape[1], one, other)
        mine, theirs = _common(one, other)
        return _dot(one.values[mine], other.values[theirs])
    inside = (change.values.shape[1] > int(lines.index.max()) for change, lines in ((one, other), (other, one)))
    _check(all(inside), one, other)
    return _dot(one.values[:, other.index], other.values[:, one.index].T)


def _low_rank(one: LowRank, other: LowRank) -> float:
    _check(len(one.b) == len(other.b) and one.a.shape[1] == other.a.shape[1], one, other)
    return float(((one.b.double().T @ other.b.double()) * (one.a.double() @ other.a.double().T)).sum())


def _dense(one: Dense, other: LowRank) -> float:
    _check(list(one.values.shape) == [len(other.b), other.a.shape[1]], one, other)
    rows = max(1, CHUNK // other.a.shape[1])
    parts = zip(one.values.split(rows), other.b.split(rows), strict=True)
    return sum(float(((w.double() @ other.a.double().T) * b.double()).sum()) for w, b in parts)


def _common(one: Lines, other: Lines) -> tuple[Tensor, Tensor]:
    """Where the lines that both name stand in each."""
    _, mine, theirs = np.intersect1d(one.index.numpy(), other.index.numpy(), assume_unique=True, return_indices=True)
    return torch.from_numpy(mine), torch.from_numpy(theirs)


def _named(change: LowRank | Dense, lines: Lines) -> Tensor:
    """The lines of a change that another names, one a row."""
    index = lines.index
    if isinstance(change, Dense):
        _check(lines.fits(list(change.values.shape)), change, lines)
        return change.values[index] if lines.axis == 0 else change.values[:, index].T
    _check(lines.fits([len(change.b), change.a.shape[1]]), change, lines)
    a, b = change.a.double(), change.b.double()
    return b[index] @ a if lines.axis == 0 else a[:, index].T @ b.T


def _dot(one: Tensor, other: Tensor) -> float:
    """Sum of products of entries, a chunk at a time in float64."""
    _check(one.shape == other.shape, one, other)
    pairs = zip(one.reshape(-1).split(CHUNK), other.reshape(-1).split(CHUNK), strict=True)
    return sum(float(a.double() @ b.double()) for a, b in pairs)


def _check(fits: bool, one: Change | Tensor, other: Change | Tensor) -> None:
    if not fits:
        shapes = [
            list(c.shape) if isinstance(c, Tensor) else {k: list(t.shape) for k, t in c.tensors().items()}
            for c in (one, other)
        ]
        raise ShapeError(f"changes {shapes[0]} and {shapes[1]} are not of one tensor; compare deltas of one target")
