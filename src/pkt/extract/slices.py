"""Reading located slices from a source, and placing changes on a target's rows and columns.

L layers, K neurons per layer, R distinct rows, Ds and Dt widths of source and target.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from pkt.extract.neurons import NeuronSet
from pkt.inject.changes import Lines
from pkt.inject.delta import Delta, Key
from pkt.models.families import KINDS, LINE_AXIS, Dims
from pkt.models.lm import LM


def line_index(part: str, neurons: list[int], dims: Dims) -> list[int]:
    """The row or column of `part` that belongs to each neuron."""
    return [dims.v_row(j) for j in neurons] if part == "v" else neurons


def read_slices(source: LM, chosen: NeuronSet) -> dict[str, Tensor]:
    """The located rows and columns of the source, straight from its files: part -> (L, K, Ds) float32."""
    slices = {}
    for kind, parts in KINDS.items():
        layers, index = chosen.layers[kind], chosen.index[kind].tolist()
        for part in parts:
            lines = {at: line_index(part, neurons, source.dims) for at, neurons in zip(layers, index, strict=True)}
            read = source.slices(part, lines)
            slices[part] = torch.stack([read[at] for at in layers])
    return slices


def place(changes_LKDt: dict[str, Tensor], chosen: NeuronSet, dims: Dims) -> Delta:
    """Put the change of rank r on the line of the target's neuron of rank r; differentiable.

    Query heads of one group share a value head, so several attention neurons can fall on one row of `v_proj`: their
    changes are averaged.
    """
    placed: dict[Key, Lines] = {}
    for kind, parts in KINDS.items():
        for part in parts:
            changes_KDt = changes_LKDt[part].unbind(0)  # one gradient for all layers, not a full-size one for each
            for i, layer in enumerate(chosen.layers[kind]):
                lines = line_index(part, chosen.index[kind][i].tolist(), dims)
                index, values_RD = _merge(lines, changes_KDt[i])
                placed[layer, part] = Lines(index, values_RD, LINE_AXIS[part])
    return Delta({key: placed[key] for key in sorted(placed)})


def _merge(lines: list[int], change_KD: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct lines (R,) in order, and the mean change of each (R, D).

    Changes of one line are added in rank order, one index_add of distinct lines after the other: a single one with repeats
    would add in an order that changes from run to run on a GPU.
    """
    index, row_K, count_R = torch.tensor(lines).unique(return_inverse=True, return_counts=True)
    seen: Counter[int] = Counter()
    earlier = []
    for line in lines:
        earlier.append(seen[line])
        seen[line] += 1
    earlier_K = torch.tensor(earlier)
    total_RD = change_KD.new_zeros(len(index), change_KD.shape[1])
    for turn in range(int(count_R.max())):
        now = (earlier_K == turn).nonzero()[:, 0].to(change_KD.device)
        total_RD = total_RD.index_add(0, row_K.to(change_KD.device)[now], change_KD[now])
    return index, total_RD / count_R.to(change_KD)[:, None]
