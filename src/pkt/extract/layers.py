"""Layer maps: which source layer gives to which target layer."""

from __future__ import annotations

import torch
from torch import Tensor

from pkt.errors import UnsupportedModelError


def top_scores(source_scores_L: Tensor, num_target: int, name: str) -> list[int]:
    """The source layers with the highest scores, as many as the target has, in depth order. The i-th pairs with target layer i.

    Args: source_scores_L one score per source layer, summed over examples, in nats.
    Raises: UnsupportedModelError when the source has fewer layers than the target.
    Source: LaTen, arXiv:2505.14436, section 3.
    """
    if len(source_scores_L) < num_target:
        raise UnsupportedModelError(
            f"{name} has {len(source_scores_L)} layers, but the target has {num_target}: every target layer needs a source "
            f"layer of its own; swap the models or choose a deeper source"
        )
    best = torch.sort(source_scores_L, descending=True, stable=True).indices[:num_target]
    return sorted(best.tolist())
