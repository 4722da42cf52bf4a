"""Which part of a source Seeking takes: layers, and in every matrix of theirs a block of the target's shape.

1. Sensitivity `S = sum over examples of |w * dL/dw|` of every weight (`extract/sensitivity.py`).
2. Layers: the sum of S over all tensors of each; as published, as many as the target has, the highest, in depth order.
3. Blocks: of each matrix, the contiguous rows and columns, as many as the target's matrix has, with the largest sum of S, from a
   summed-area table in float64 (float32 can flip close ties). (arXiv:2310.11451, section 3.2.)

Embedding and LM head keep their rows, for row i is token i. Blocks of different matrices are chosen each by itself, as published, and then rows of `gate` and `up` are not of the same neurons. The
variant `coupled` takes the same FFN neurons in `gate`, `up` and `down`, and whole heads in `q`, `k`, `v` and `o`.

R rows, C columns, N FFN neurons, H key-value heads, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pkt.errors import DataError, UnsupportedModelError
from pkt.extract.sensitivity import each_sensitivity
from pkt.inject.delta import Key
from pkt.models.families import Dims
from pkt.models.lm import LM
from pkt.tasks.base import Example

VERSION = 1
"""Of the scores: raise it when they change for the same inputs."""
Corner = tuple[int, int]
"""First row and first column of a block."""
Shape = tuple[int, int]
"""Rows and columns."""


@dataclass(frozen=True)
class Blocks:
    """What was found in a source.

    `layers` (source layers,) float64 sums of S; `corners` by (source layer, part).
    """

    layers: Tensor
    corners: dict[Key, Corner]


def shapes(lm: LM, keys: Sequence[Key]) -> dict[Key, Shape]:
    """Rows and columns of matrices."""
    found = {}
    for key in keys:
        rows, columns = lm.shape(*key)
        found[key] = rows, columns
    return found


def check_sizes(source: LM, target: LM, keys: Sequence[Key], *, coupled: bool) -> None:
    """Raise UnsupportedModelError unless every matrix of the target fits into the source's.

    Args:
        keys: matrices of the target; those of a layer are looked for in every source layer.
    """
    if (None, "unembed") in keys and source.config.tie_word_embeddings:
        raise UnsupportedModelError(
            f"{source.name}: embedding and LM head are tied, those of {target.name} are not; untie the source too (`pkt untie`), or set "
            f"method.embeddings=false"
        )
    theirs = shapes(source, [(None if layer is None else 0, part) for layer, part in keys])
    small = {}
    for (layer, part), (rows, columns) in shapes(target, keys).items():
        have = theirs[None if layer is None else 0, part]
        if have[0] < rows or have[1] < columns:
            small[part] = f"its {part} matrix is {have[0]} x {have[1]}, smaller than the target's of {rows} x {columns}"
    if small:
        outside = ["set method.embeddings=false"] * bool({"embed", "unembed"} & small.keys())
        parts = ", ".join(part for part in small if part not in ("embed", "unembed"))
        inside = [f"leave {parts} out of method.parts"] * bool(parts)
        raise UnsupportedModelError(
            f"{source.name}: {'; '.join(small.values())}: no block of that shape is in it; choose a larger source, or "
            f"{' and '.join([*inside, *outside])}"
        )
    s, t = source.dims, target.dims
    if coupled and ((s.head_dim, s.heads // s.kv_heads) != (t.head_dim, t.heads // t.kv_heads)):
        raise UnsupportedModelError(
            f"whole heads cannot be taken: those of {source.name} have size {s.head_dim} and {s.heads // s.kv_heads} queries per key, those of "
            f"{target.name} size {t.head_dim} and {t.heads // t.kv_heads}; use method.blocks=matrix"
        )


def find_blocks(
    source: LM,
    target: LM,
    keys: Sequence[Key],
    examples: Sequence[Example],
    style: str,
    *,
    coupled: bool = False,
    layers_at_once: int = 0,
) -> Blocks:
    """Layer sums and the best blocks of all source layers.

    Above the model, its activations and the gradient of one tensor, the sums S of the layers that are read at once are in
    memory (float32, on the CPU), and while a matrix is searched its summed-area table (float64).

    Args:
        keys: the target's matrices that need a block.
        layers_at_once: source layers whose S is kept at a time, each group with its own pass over the examples; 0 means all.
    """
    if not examples:
        raise DataError("there is no example to locate with: the extract split is empty")
    wanted = shapes(target, [key for key in keys if key[0] in (None, 0)])
    size = layers_at_once or source.dims.layers
    names = {
        name: key for name, key in source.family.keys(source.dims.layers).items() if name in source.checkpoint.files
    }
    totals = torch.zeros(source.dims.layers, dtype=torch.float64)
    corners: dict[Key, Corner] = {}
    for first in range(0, source.dims.layers, size):
        held = range(first, min(first + size, source.dims.layers))
        group = {
            name: key
            for name, key in names.items()
            if key[0] in held or (key[0] is None and first == 0 and key in wanted)
        }
        sums = _sums(source, examples, style, group)
        for layer in held:
            totals[layer] = sum(s.sum(dtype=torch.float64) for (at, _), s in sums.items() if at == layer)
            parts = {part: shape for (at, part), shape in wanted.items() if at == 0}
            inside = {
                part: sums[layer, source.family.whole(part)][source.family.rows(part, source.dims)] for part in parts
            }
            found = _coupled(inside, parts, source.dims, target.dims) if coupled else _by_matrix(inside, parts)
            corners |= {(layer, part): corner for part, corner in found.items()}
        corners |= {
            key: best_columns(sums[key][: shape[0]], shape[1])
            for key, shape in wanted.items()
            if key[0] is None and first == 0
        }
    return Blocks(totals, corners)


def _sums(source: LM, examples: Sequence[Example], style: str, group: dict[str, Key]) -> dict[Key, Tensor]:
    sums: dict[Key, Tensor] = {}

    def add(_example: int, name: str, product: Tensor) -> None:
        key = group[name]
        sums[key] = sums[key].add_(product.cpu()) if key in sums else product.cpu()

    each_sensitivity(source, examples, style, add, group)
    return sums


def best_block(s_RC: Tensor, shape: Shape) -> Corner:
    """First row and column of the contiguous block with the largest sum; the first of equals, row by row.

    Args:
        s_RC: what is summed. shape: rows and columns of the block.
    """
    rows, columns = shape
    table = torch.zeros(s_RC.shape[0] + 1, s_RC.shape[1] + 1, dtype=torch.float64)
    torch.cumsum(s_RC.double(), 0, out=table[1:, 1:])
    table[1:, 1:] = table[1:, 1:].cumsum(1)
    block = table[rows:, columns:] - table[:-rows, columns:] - table[rows:, :-columns] + table[:-rows, :-columns]
    return divmod(int(block.argmax()), block.shape[1])


def best_columns(s_RC: Tensor, columns: int) -> Corner:
    """The same where all rows are taken: the first column of the block with the largest sum."""
    total_C = torch.zeros(s_RC.shape[1] + 1, dtype=torch.float64)
    total_C[1:] = s_RC.sum(0, dtype=torch.float64).cumsum(0)
    return 0, int((total_C[columns:] - total_C[:-columns]).argmax())


def _by_matrix(sums: dict[str, Tensor], parts: dict[str, Shape]) -> dict[str, Corner]:
    return {part: best_block(sums[part], shape) for part, shape in parts.items()}


def _coupled(sums: dict[str, Tensor], parts: dict[str, Shape], source: Dims, target: Dims) -> dict[str, Corner]:
    """Corners with shared FFN neurons, and with whole heads. A part that is not wanted does not count."""
    lines = {part: (s.T if part in ("down", "o") else s) for part, s in sums.items()}
    found: dict[str, Corner] = {}
    ffn = [part for part in ("gate", "up", "down") if part in parts]
    if ffn:
        s_ND = torch.stack([lines[part] for part in ffn]).sum(0)
        row, column = best_block(s_ND, (target.ffn, target.width))
        found |= {part: (column, row) if part == "down" else (row, column) for part in ffn}
    heads = [part for part in ("q", "k", "v", "o") if part in parts]
    if heads:
        s_HD = torch.stack([lines[part].unflatten(0, (source.kv_heads, -1)).double().sum(1) for part in heads]).sum(0)
        head, column = best_block(s_HD, (target.kv_heads, target.width))
        for part in heads:
            row = head * len(lines[part]) // source.kv_heads
            found[part] = (column, row) if part == "o" else (row, column)
    return found
