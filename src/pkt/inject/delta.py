"""What: changes to a target's weights, by layer and part, and where they came from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pkt.errors import DataError, ShapeError
from pkt.files import HEADER, save_tensors
from pkt.inject.changes import Change, Dense, Lines, LowRank, Within, from_tensors, within
from pkt.models.lm import LM

FORMAT = "delta 1"


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
            return t.detach().float().cpu().clone() if t.is_floating_point() else t.cpu()

        return Delta(
            {key: from_tensors({n: plain(t) for n, t in c.tensors().items()}) for key, c in self.changes.items()},
            self.provenance,
        )

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
        return Delta({key: from_tensors(t) for key, t in ordered}, provenance)

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


def _sum(key: Key, one: Change, two: Change) -> Change:
    if isinstance(one, Lines) and isinstance(two, Lines) and one.axis == two.axis and torch.equal(one.index, two.index):
        return replace(one, values=one.values + two.values)
    if isinstance(one, Dense) and isinstance(two, Dense) and one.values.shape == two.values.shape:
        return Dense(one.values + two.values)
    if isinstance(one, LowRank) and isinstance(two, LowRank):
        return LowRank(torch.cat([one.a, two.a]), torch.cat([one.b, two.b], dim=1))
    raise ShapeError(f"cannot add two deltas that change {key} in different ways or lines")
