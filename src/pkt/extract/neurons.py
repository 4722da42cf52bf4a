"""Where: neurons chosen in some layers of a model, in rank order, with their scores."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pkt.errors import ConfigError, UnsupportedModelError


@dataclass(frozen=True)
class NeuronSet:
    """Chosen neurons of one model.  L chosen layers, K neurons per layer, best first.

    `layers[kind]` are the layers in depth order; `index[kind]` (L, K) and `scores[kind]` (L, K, nats) belong to them.
    """

    layers: dict[str, list[int]]
    index: dict[str, Tensor]
    scores: dict[str, Tensor]

    def count(self, kind: str) -> int:
        """Neurons per layer."""
        return self.index[kind].shape[1]


def ranked(scores_LN: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Indices and scores (L, k) of the highest scores of every row; equal scores go to the lower index."""
    order = torch.sort(scores_LN, dim=-1, descending=True, stable=True)
    return order.indices[:, :k], order.values[:, :k]


def num_chosen(num_neurons: int, rate: float, kind: str) -> int:
    """`int(num_neurons * rate)`, the number of neurons per layer at a transfer rate.

    Raises:
        ConfigError: the rate selects no neuron.
    """
    k = int(num_neurons * rate)
    if k < 1:
        raise ConfigError(
            f"transfer rate {rate} selects no {kind} neuron: the target has {num_neurons} per layer; "
            f"use at least {math.ceil(1e5 / num_neurons) / 1e5:.5f}"
        )
    return k


def select(scores_LN: dict[str, Tensor], layers: dict[str, list[int]], counts: dict[str, int], name: str) -> NeuronSet:
    """The best `counts[kind]` neurons of the given layers.

    Args:
        scores_LN: per kind (layers of the model, neurons of a layer), float32 nats.
        name: the model, for messages.

    Raises:
        UnsupportedModelError: the model has fewer neurons per layer than are asked for.
    """
    index, scores = {}, {}
    for kind, k in counts.items():
        have = scores_LN[kind].shape[1]
        if have < k:
            raise UnsupportedModelError(
                f"{name} has {have} {kind} neurons per layer, but {k} are to be chosen; lower the transfer rate"
            )
        index[kind], scores[kind] = ranked(scores_LN[kind][layers[kind]], k)
    return NeuronSet(layers, index, scores)
