"""Location, shared by the methods that pair neurons of a source with neurons of a target.

1. Both models are scored on the extract split, one in memory at a time.
2. Layer maps for attention and for FFN, and in every mapped layer the best neurons of both models.
3. The source's slices at its chosen neurons, read from its files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor

from pkt.config import Section
from pkt.errors import ConfigError
from pkt.extract.attribution import Attribution, AttributionConfig, attribute
from pkt.extract.layers import top_scores
from pkt.extract.neurons import NeuronSet, num_chosen, select
from pkt.extract.slices import read_slices
from pkt.models.families import KINDS, Dims
from pkt.models.lm import LM
from pkt.tasks.base import Task


class LocationConfig(Section):
    """Options of location; the base of the options of every method that locates."""

    transfer_rate: float = Field(
        0.1,
        gt=0,
        le=1,
        description="share of a target layer's neurons that is updated, during alignment if there is one",
    )
    locate: Literal["summed", "per_example"] = Field(
        "summed",
        description="neurons: `summed` scores over the extract split; `per_example`, as released: each step on its own example, "
        "injection on one drawn example",
    )
    locator: Literal["logprob_gain", "random"] = Field(
        "logprob_gain",
        description="how neurons are chosen in both models: by their scores, or at random (a control); layers go by their scores",
    )
    attribution: AttributionConfig = Field(AttributionConfig(), description="how neurons are scored")
    memory_mib: int = Field(256, ge=1, description="MiB that attribution may work in, above the model")


LOCATE_OPTIONS = ("locate", "attribution")
"""Options that decide what `attributions` finds."""
RANDOM_NEURONS: dict[str, Any] = {"locator": "random"}
"""Options of the control arm of that name."""


@dataclass(frozen=True)
class Located:
    """Both models' chosen neurons at one rate, and the source's slices (part -> (L, K, Ds)) on the target's device."""

    source: NeuronSet
    target: NeuronSet
    slices: dict[str, Tensor]


def counts(dims: Dims, rate: float) -> dict[str, int]:
    """Neurons per target layer and kind at a rate."""
    return {kind: num_chosen(dims.neurons(kind), rate, kind) for kind in KINDS}


def check_pair(source: LM, target: LM, *rates: float) -> None:
    """Raise unless the source has as many layers as the target and as many neurons as are chosen at each rate.

    Raises:
        UnsupportedModelError: too few layers. ConfigError: a rate takes no neuron, or more than the source has.
    """
    top_scores(torch.zeros(source.dims.layers), target.dims.layers, source.name)
    for rate in rates:
        for kind, k in counts(target.dims, rate).items():
            if source.dims.neurons(kind) < k:
                raise ConfigError(
                    f"{source.name} has {source.dims.neurons(kind)} {kind} neurons per layer, but rate {rate} takes {k} in "
                    f"{target.name}; use a rate of at most {math.floor(1000 * source.dims.neurons(kind) / target.dims.neurons(kind)) / 1000}"
                )


def attributions(
    source: LM, target: LM, task: Task, cfg: LocationConfig, style: str
) -> tuple[Attribution, Attribution]:
    """Scores of both models on the extract split, one model in memory at a time."""
    per_example = cfg.locate == "per_example"
    found = [
        attribute(lm, task.location, style, cfg.attribution, per_example=per_example, memory=cfg.memory_mib << 20)
        for lm in (source, target)
    ]
    return found[0], found[1]


def ordered_scores(
    source: LM, target: LM, task: Task, cfg: LocationConfig, style: str, gen: Generator
) -> tuple[Attribution, Attribution]:
    """The scores that neurons are chosen by: `attributions`, or with the locator `random` neurons in random order."""
    of_source, of_target = attributions(source, target, task, cfg, style)
    if cfg.locator == "random":
        return of_source.with_random_neurons(gen), of_target.with_random_neurons(gen)
    return of_source, of_target


def locate(source: LM, target: LM, scores: tuple[Attribution, Attribution], num: dict[str, int]) -> Located:
    """Choose layers and neurons by summed scores and read the source's slices.

    Args: num neurons per layer, by kind.
    """
    of_source, of_target = (a.summed() for a in scores)
    maps = {kind: top_scores(of_source.layers[kind][0], target.dims.layers, source.name) for kind in KINDS}
    every = {kind: list(range(target.dims.layers)) for kind in KINDS}
    chosen = select({k: t[0] for k, t in of_source.neurons.items()}, maps, num, source.name)
    placed = select({k: t[0] for k, t in of_target.neurons.items()}, every, num, target.name)
    slices = {part: t.to(target.torch_device) for part, t in read_slices(source, chosen).items()}
    return Located(chosen, placed, slices)


def describe_layers(scores: tuple[Attribution, Attribution], final: Located) -> dict[str, dict]:
    """Layer scores (nats, summed over the extract split) and the pairs (source layer, target layer), for the report."""
    of_source, of_target = (a.summed() for a in scores)
    return {
        kind: {
            "source_scores": of_source.layers[kind][0].tolist(),
            "target_scores": of_target.layers[kind][0].tolist(),
            "map": [list(p) for p in zip(final.source.layers[kind], final.target.layers[kind], strict=True)],
        }
        for kind in KINDS
    }
