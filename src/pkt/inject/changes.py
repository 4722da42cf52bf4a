"""What one part's weight changes by, in float32: one of three kinds.

For a linear map `W` (out, in):

- `Lines`: some rows (axis 0) or columns (axis 1);
- `LowRank`: `B A` with `B` (out, r) and `A` (r, in);
- `Dense`: every entry.

`Within` is a change of some rows of a matrix that several parts share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Lines:
    """Rows or columns.  `index` (K,) without repeats; `values` (K, in) for rows, (K, out) for columns."""

    index: Tensor
    values: Tensor
    axis: int

    def tensors(self) -> dict[str, Tensor]:
        return {"rows" if self.axis == 0 else "columns": self.index, "values": self.values}

    def fits(self, shape: list[int]) -> bool:
        if len(shape) != 2:
            return False
        inside = self.index.numel() == 0 or int(self.index.max()) < shape[self.axis]
        return inside and self.values.shape == (len(self.index), shape[1 - self.axis])

    def output(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the change adds to the map's output for input x (..., in), and to which channels (None: all)."""
        values = self.values.to(x.device, x.dtype)
        if self.axis == 0:
            return functional.linear(x, values), self.index.to(x.device)
        return x[..., self.index.to(x.device)] @ values, None

    def add_(self, weight: Tensor) -> None:
        index, values = self.index.to(weight.device), self.values.detach().to(weight.device)
        if self.axis == 1:
            weight = weight.T
        weight[index] = (weight[index].float() + values).to(weight.dtype)

    def map(self, f: Callable[[Tensor], Tensor]) -> Lines:
        return replace(self, values=f(self.values))

    def size(self) -> int:
        """Entries of the weight that change."""
        return self.values.numel()

    def entries(self) -> Tensor:
        return self.values


@dataclass(frozen=True)
class LowRank:
    """`B A`.  `a` (r, in), `b` (out, r)."""

    a: Tensor
    b: Tensor

    def tensors(self) -> dict[str, Tensor]:
        return {"a": self.a, "b": self.b}

    def fits(self, shape: list[int]) -> bool:
        return len(self.a) == self.b.shape[1] and [len(self.b), self.a.shape[1]] == shape

    def output(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        a, b = (t.to(x.device, x.dtype) for t in (self.a, self.b))
        return functional.linear(functional.linear(x, a), b), None

    def add_(self, weight: Tensor) -> None:
        weight.copy_(weight.float() + self.entries().detach().to(weight.device))

    def map(self, f: Callable[[Tensor], Tensor]) -> LowRank:
        return replace(self, b=f(self.b))

    def size(self) -> int:
        return len(self.b) * self.a.shape[1]

    def entries(self) -> Tensor:
        return self.b @ self.a


@dataclass(frozen=True)
class Dense:
    """Every entry, in the weight's own shape."""

    values: Tensor

    def tensors(self) -> dict[str, Tensor]:
        return {"values": self.values}

    def fits(self, shape: list[int]) -> bool:
        return list(self.values.shape) == shape

    def output(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return functional.linear(x, self.values.to(x.device, x.dtype)), None

    def add_(self, weight: Tensor) -> None:
        weight.copy_(weight.float() + self.values.detach().to(weight.device))

    def map(self, f: Callable[[Tensor], Tensor]) -> Dense:
        return replace(self, values=f(self.values))

    def size(self) -> int:
        return self.values.numel()

    def entries(self) -> Tensor:
        return self.values


Change = Lines | LowRank | Dense


@dataclass(frozen=True)
class Within:
    """A change of some rows of a tensor: those of a part that shares a matrix with others."""

    change: Change
    rows: slice

    def output(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the change adds to the whole map's output, and to which of its channels."""
        added, channels = self.change.output(x)
        own = torch.arange(self.rows.start, self.rows.stop, device=x.device)
        return added, own if channels is None else own[channels]

    def add_(self, weight: Tensor) -> None:
        self.change.add_(weight[self.rows])

    def entries(self) -> Tensor:
        return self.change.entries()


def within(change: Change, rows: slice) -> Change | Within:
    """A part's change as one of the tensor in which the part has these rows; itself where it has them all."""
    return change if rows == slice(None) else Within(change, rows)


def from_tensors(tensors: dict[str, Tensor]) -> Change:
    """The change whose `tensors()` these are."""
    if "a" in tensors:
        return LowRank(tensors["a"], tensors["b"])
    for axis, name in enumerate(("rows", "columns")):
        if name in tensors:
            return Lines(tensors[name], tensors["values"], axis)
    return Dense(tensors["values"])
