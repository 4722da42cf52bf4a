"""Layer maps: which source layer gives to which target layer.

Every map gives each target layer a source layer of its own and keeps them in depth order. Between models of equal depth there is one such
map, layer i to layer i.

S source layers, T target layers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pkt.errors import UnsupportedModelError

LAYER_MAPS = {
    "top_scores": "the source layers with the highest scores, as published",
    "depth": "the source layer at the same relative depth, whatever its score",
    "similarity": "the source layers whose outputs are most like the target's: the largest sum of debiased CKA over all pairs",
}
"""All maps by name, in words."""


def check_depth(num_source: int, num_target: int, name: str) -> None:
    """Raise UnsupportedModelError when the source, of that name, has fewer layers than the target."""
    if num_source < num_target:
        raise UnsupportedModelError(
            f"{name} has {num_source} layers, but the target has {num_target}: every target layer needs a source "
            f"layer of its own; swap the models or choose a deeper source"
        )


def top_scores(source_scores_S: Tensor, num_target: int, name: str) -> list[int]:
    """The source layers with the highest scores, as many as the target has, in depth order. The i-th pairs with target layer i.

    Args: source_scores_S one score per source layer, summed over examples, in the locator's unit.
    Raises: UnsupportedModelError when the source has fewer layers than the target.
    Source: LaTen, arXiv:2505.14436, section 3.
    """
    check_depth(len(source_scores_S), num_target, name)
    best = torch.sort(source_scores_S, descending=True, stable=True).indices[:num_target]
    return sorted(best.tolist())


def depth(num_source: int, num_target: int, name: str) -> list[int]:
    """For target layer i the source layer in which the middle of its depth falls: floor((i + 1/2) S / T).

    Raises: UnsupportedModelError when the source has fewer layers than the target.
    """
    check_depth(num_source, num_target, name)
    return [(2 * i + 1) * num_source // (2 * num_target) for i in range(num_target)]


def similarity(alike_ST: Tensor, name: str) -> list[int]:
    """The increasing assignment of source layers to target layers with the largest sum of similarities, by dynamic programming.

    With `best(s, t)` the largest sum of the first t target layers on the first s source layers,
    `best(s, t) = max(best(s - 1, t), best(s - 1, t - 1) + alike(s - 1, t - 1))`. Of equal sums the one with the earlier source layers.

    Args: alike_ST similarity of every source layer with every target layer; negative ones may occur.
    Raises: UnsupportedModelError when the source has fewer layers than the target, or a similarity is not finite.
    """
    num_source, num_target = alike_ST.shape
    check_depth(num_source, num_target, name)
    if not alike_ST.isfinite().all():
        s, t = (~alike_ST.isfinite()).nonzero()[0].tolist()
        raise UnsupportedModelError(
            f"{name}: the similarity of its layer {s} to the target's layer {t} is {float(alike_ST[s, t])}, expected a "
            f"finite number; use another layer_map"
        )
    alike = alike_ST.double().tolist()
    best = [[0.0] + [float("-inf")] * num_target]
    for row in alike:
        before = best[-1]
        best.append([0.0] + [max(before[t + 1], before[t] + row[t]) for t in range(num_target)])
    found: list[int] = []
    s = num_source
    for t in range(num_target, 0, -1):
        while best[s - 1][t] == best[s][t]:  # as good without this source layer
            s -= 1
        s -= 1
        found.append(s)
    return found[::-1]
