"""The hypernetwork of LaTen: maps source slices to changes of the target's rows and columns. And its control without a source.

One bias-free two-layer ReLU perceptron `d_source -> hidden -> d_target` per module type, shared by all layers and neurons,
in float32 (arXiv:2505.14436, section 3.2). Another number of layers and biases are options.

L layers, K neurons per layer, Ds and Dt widths of source and target.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from pkt.models.families import PARTS

PUBLISHED_STD = 1e-5


class Hypernetwork(nn.Module):
    """Slices (L, K, Ds) -> changes (L, K, Dt), for each of the four module types.

    Args:
        hidden: hidden width; 0 means the source's width.
        depth: linear maps, with a ReLU after each but the last; 2 as published, 1 is a linear map without hidden units.
        init: `published`, N(0, 1e-5 squared); or `fan_in`, N(0, 1/fan_in) for all weights but the last and `scale` times that
            for the last, so that the first change has a size that training can use.
    """

    def __init__(
        self, source_width: int, target_width: int, gen: Generator, *, hidden: int = 0, depth: int = 2, bias: bool = False,
        init: str = "published", scale: float = 1e-2,
    ) -> None:  # fmt: skip
        super().__init__()
        widths = [source_width, *[hidden or source_width] * (depth - 1), target_width]
        self.parts = nn.ModuleDict()
        for part in PARTS:
            maps = [nn.Linear(width, wide, bias=bias) for width, wide in itertools.pairwise(widths)]
            for layer in maps:
                factor = scale if layer is maps[-1] else 1.0
                std = PUBLISHED_STD if init == "published" else factor / math.sqrt(layer.in_features)
                nn.init.normal_(layer.weight, 0.0, std, generator=gen)
                if bias:
                    nn.init.zeros_(layer.bias)
            between = [module for layer in maps[:-1] for module in (layer, nn.ReLU())]
            self.parts[part] = nn.Sequential(*between, maps[-1])

    def forward(self, slices_LKDs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The change of every chosen line, before lines of one row are merged."""
        return {part: self.parts[part](slices) for part, slices in slices_LKDs.items()}


class FreeEntries(nn.Module):
    """The same changes with no source: their entries are the parameters, and start at zero.

    Args:
        num: changes per layer, by part.
    """

    def __init__(self, layers: int, num: dict[str, int], width: int) -> None:
        super().__init__()
        self.parts = nn.ParameterDict({part: nn.Parameter(torch.zeros(layers, k, width)) for part, k in num.items()})

    def forward(self, slices_LKDs: dict[str, Tensor]) -> dict[str, Tensor]:
        """As many changes as there are slices, whose values are not looked at; those beyond its own are zero."""
        found = {}
        for part, slices in slices_LKDs.items():
            own = self.parts[part][:, : slices.shape[1]]
            found[part] = functional.pad(own, (0, 0, 0, slices.shape[1] - own.shape[1]))
        return found


def penalty(changes_LKDt: dict[str, Tensor]) -> Tensor:
    """Sum over module types of the mean squared entry."""
    return torch.stack([change.pow(2).mean() for change in changes_LKDt.values()]).sum()
