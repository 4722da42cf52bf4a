"""What: a change to a target's weights, by layer and part, in float32.

A part's change is one of three kinds. For a linear map `W` (out, in):

- `Lines`: some rows (axis 0) or columns (axis 1);
- `LowRank`: `B A` with `B` (out, r) and `A` (r, in);
- `Dense`: every entry.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional

from pkt.errors import DataError, ShapeError
from pkt.files import HEADER, save_tensors
from pkt.models.lm import LM

FORMAT = "delta 1"


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


Key = tuple[int | None, str]
"""(layer, part): a part of `Family`, with no layer for `embed`, `unembed` and `final_norm`; `q_bias` is the bias of `q`, `q+k+v`
the matrix that three parts share."""


@dataclass(frozen=True, repr=False)
class Delta:
    """Changes to a target's weights, and where they came from."""

    changes: dict[Key, Change]
    provenance: dict[str, Any] = field(default_factory=dict)
    """JSON values: method, options, hashes, layer maps, the training history."""

    def __repr__(self) -> str:
        return f"Delta({len(self.changes)} tensors, {self.size():,} entries, norm {self.norm():.4g})"

    def __add__(self, other: Delta) -> Delta:
        """The sum. A part that both change must be changed in the same kind, and in the same lines."""
        changes = dict(self.changes)
        for key, change in other.changes.items():
            changes[key] = _sum(key, changes[key], change) if key in changes else change
        return Delta(changes, self.provenance)

    def __mul__(self, factor: float) -> Delta:
        return Delta({key: c.map(lambda t: t * factor) for key, c in self.changes.items()}, self.provenance)

    def detach(self) -> Delta:
        """The same values, on the CPU and outside the graph."""

        def plain(t: Tensor) -> Tensor:
            return t.detach().float().cpu().clone()

        moved: dict[Key, Change] = {}
        for key, c in self.changes.items():
            if isinstance(c, Lines):
                moved[key] = Lines(c.index.cpu(), plain(c.values), c.axis)
            elif isinstance(c, LowRank):
                moved[key] = LowRank(plain(c.a), plain(c.b))
            else:
                moved[key] = Dense(plain(c.values))
        return Delta(moved, self.provenance)

    def norm(self) -> float:
        """Frobenius norm over all changes."""
        return float(sum(c.entries().detach().float().pow(2).sum() for c in self.changes.values()) ** 0.5)

    def size(self) -> int:
        """Entries of the target's weights that change."""
        return sum(c.size() for c in self.changes.values())

    def tensors(self, target: LM) -> Iterator[tuple[str, Change | Within]]:
        """(tensor name in the target's checkpoint, change), checked against the target's shapes.

        Parts that share a matrix name the same tensor.

        Raises:
            ShapeError: a change does not fit.
        """
        for (layer, part), change in self.changes.items():
            name = target.family.tensor(layer, part)
            shape = target.shape(layer, part)
            if not change.fits(shape):
                shapes = {k: list(t.shape) for k, t in change.tensors().items()}
                raise ShapeError(
                    f"this delta changes {part} in {name} by {type(change).__name__} {shapes}, which does not fit {target.name}, where it is "
                    f"{shape}; use the target that the delta was made for"
                )
            yield name, within(change, target.family.rows(part, target.dims))

    def save(self, path: Path) -> None:
        """Write a safetensors file with the provenance in its header."""
        tensors = {
            f"{key_name(key)}.{name}": t.detach()
            for key, change in self.changes.items()
            for name, t in change.tensors().items()
        }
        save_tensors(
            path, tensors, {HEADER: json.dumps({"format": FORMAT, "provenance": self.provenance}, sort_keys=True)}
        )

    @staticmethod
    def load(path: Path) -> Delta:
        """Read what `save` wrote.

        Raises:
            DataError: no such file, or another kind of file.
        """
        with _opened(path) as (f, provenance):
            parts: dict[Key, dict[str, Tensor]] = {}
            for name in f.keys():
                key, _, field_ = name.rpartition(".")
                parts.setdefault(key_named(key), {})[field_] = f.get_tensor(name)
        ordered = sorted(parts.items(), key=lambda item: (item[0][0] is None, item[0][0] or 0, item[0][1]))
        return Delta({key: _change(t) for key, t in ordered}, provenance)

    @staticmethod
    def where_from(path: Path) -> dict[str, Any]:
        """The provenance in a file's header; raises as `load`."""
        with _opened(path) as (_, provenance):
            return provenance


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """A delta's file and its provenance.

    Raises:
        DataError: no such file, or another kind of file.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such delta; run the align stage first, or give a delta.safetensors")
    try:
        with safe_open(path, "pt") as f:
            header = json.loads((f.metadata() or {}).get(HEADER, "{}"))
            if header.get("format") != FORMAT:
                raise DataError(
                    f"{path}: not a delta of this package (format {header.get('format')!r}, expected {FORMAT!r})"
                )
            yield f, header["provenance"]
    except SafetensorError as e:
        raise DataError(f"{path}: not a safetensors file ({e})") from e


def key_name(key: Key) -> str:
    """`LAYER.PART`, as files name it; `-` stands for no layer."""
    layer, part = key
    return f"{'-' if layer is None else layer}.{part}"


def key_named(name: str) -> Key:
    """The key of that name."""
    layer, part = name.split(".")
    return None if layer == "-" else int(layer), part


def _change(tensors: dict[str, Tensor]) -> Change:
    if "a" in tensors:
        return LowRank(tensors["a"], tensors["b"])
    for axis, name in enumerate(("rows", "columns")):
        if name in tensors:
            return Lines(tensors[name], tensors["values"], axis)
    return Dense(tensors["values"])


def _sum(key: Key, one: Change, two: Change) -> Change:
    if isinstance(one, Lines) and isinstance(two, Lines) and one.axis == two.axis and torch.equal(one.index, two.index):
        return replace(one, values=one.values + two.values)
    if isinstance(one, Dense) and isinstance(two, Dense) and one.values.shape == two.values.shape:
        return Dense(one.values + two.values)
    if isinstance(one, LowRank) and isinstance(two, LowRank):
        return LowRank(torch.cat([one.a, two.a]), torch.cat([one.b, two.b], dim=1))
    raise ShapeError(f"cannot add two deltas that change {key} in different ways or lines")
