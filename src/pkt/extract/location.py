"""Location, shared by the methods that pair neurons of a source with neurons of a target.

1. Both models are scored on the extract split, one in memory at a time.
2. Layer maps for attention and for FFN (`extract/pairing.py`), and in every mapped layer the best neurons of both models.
3. The source's slices at its chosen neurons, read from its files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field
from torch import Generator, Tensor

from pkt.errors import ConfigError
from pkt.extract.intervene import Sets, of_layers, refined_sets
from pkt.extract.layers import check_depth
from pkt.extract.locators import PUBLISHED, LocatorOptions, locator_of, scores_key, scores_of
from pkt.extract.neurons import NeuronSet, num_chosen, select
from pkt.extract.pairing import LayerMapOptions, Pairing, pairing_of, similarity_key
from pkt.extract.scores import Attribution
from pkt.extract.slices import read_slices
from pkt.models.families import KINDS, Dims
from pkt.models.lm import LM
from pkt.tasks.base import Task

DRAWN = (
    "neurons are drawn at random here (method.locator or method.neurons), which locates nothing; verify a located choice: random neurons "
    "stand beside it"
)


class LocationConfig(LocatorOptions, LayerMapOptions):
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


RANDOM_NEURONS: dict[str, Any] = {"neurons": "random"}
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


def check_pair(source: LM, target: LM, cfg: LocationConfig, *rates: float) -> None:
    """Raise unless the locator can score both models, and the source has as many layers as the target and as many neurons as are
    chosen at each rate.

    Raises:
        UnsupportedModelError: too few layers, or no model for this locator. ConfigError: a rate takes no neuron, or more than the source has.
    """
    check_depth(source.dims.layers, target.dims.layers, source.name)
    if check := locator_of(cfg).requires:
        check(source)
        check(target)
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
    found = scores_of((source, target), task, cfg, style, per_example=cfg.locate == "per_example")
    return found[0], found[1]


def location_key(task: Task, cfg: LocationConfig) -> list[Any]:
    """What decides `measure`, beside models and prompt style."""
    return [*scores_key(task, cfg), cfg.locate, *similarity_key(task, cfg)]


def measure(source: LM, target: LM, task: Task, cfg: LocationConfig, style: str) -> None:
    """All that location rests on, into the memo: scores, and how alike layers are where the layer map asks for it."""
    attributions(source, target, task, cfg, style)
    pairing_of(source, target, task, cfg, style)


def ordered_scores(
    source: LM, target: LM, task: Task, cfg: LocationConfig, style: str, gen: Generator
) -> tuple[Attribution, Attribution]:
    """The scores that neurons are chosen by: `attributions`, or neurons in random order if they are drawn."""
    of_source, of_target = attributions(source, target, task, cfg, style)
    if cfg.is_random:
        return of_source.with_random_neurons(gen), of_target.with_random_neurons(gen)
    return of_source, of_target


def choose(
    source: LM, target: LM, scores: tuple[Attribution, Attribution], num: dict[str, int], pairing: Pairing
) -> tuple[NeuronSet, NeuronSet]:
    """Layers of both models by a layer map, and in them neurons by summed scores.

    Args: num neurons per layer, by kind.
    """
    of_source, of_target = (a.summed() for a in scores)
    maps = {kind: pairing.layers(of_source.layers[kind][0], target.dims.layers, source.name, [kind]) for kind in KINDS}
    every = {kind: list(range(target.dims.layers)) for kind in KINDS}
    chosen = select({k: t[0] for k, t in of_source.neurons.items()}, maps, num, source.name)
    return chosen, select({k: t[0] for k, t in of_target.neurons.items()}, every, num, target.name)


def locate(
    source: LM, target: LM, scores: tuple[Attribution, Attribution], num: dict[str, int], pairing: Pairing = Pairing()
) -> Located:
    """Choose layers by a layer map and neurons by summed scores, and read the source's slices."""
    chosen, placed = choose(source, target, scores, num, pairing)
    slices = {part: t.to(target.torch_device) for part, t in read_slices(source, chosen).items()}
    return Located(chosen, placed, slices)


def located_neurons(
    source: LM, target: LM, task: Task, cfg: LocationConfig, style: str
) -> tuple[list[Sets], list[Sets]]:
    """For every example, the neurons of both models that hold it: the refined ones where the locator names them, else the chosen.

    Raises:
        ConfigError: neurons are chosen at random.
    """
    if cfg.is_random:
        raise ConfigError(DRAWN)
    scores = attributions(source, target, task, cfg, style)
    if all(found.refined for found in scores):
        return refined_sets(scores[0]), refined_sets(scores[1])
    pairing = pairing_of(source, target, task, cfg, style)
    num, found = counts(target.dims, cfg.transfer_rate), []
    for e in range(len(task.location)):
        per_example = picked(scores, e if cfg.locate == "per_example" else None)
        found.append(choose(source, target, per_example, num, pairing))
    return [of_layers(s, source.dims) for s, _ in found], [of_layers(t, target.dims) for _, t in found]


def picked(scores: tuple[Attribution, Attribution], example: int | None) -> tuple[Attribution, Attribution]:
    """Both models' scores on one example, or on all for None."""
    return scores if example is None else (scores[0].example(example), scores[1].example(example))


def describe_layers(
    scores: tuple[Attribution, Attribution], final: Located, pairing: Pairing, cfg: LocationConfig, drawn: int | None
) -> dict[str, dict]:
    """Layer scores, the pairs (source layer, target layer), and by which locator and map, for the report.

    Args:
        drawn: the example whose neurons `final` are; None means that the scores of all were summed.
    """
    of_source, of_target = (a.summed() for a in picked(scores, drawn))
    locator = locator_of(cfg).name
    named = ({} if locator == PUBLISHED else {"locator": locator}) | ({} if drawn is None else {"examples": 1})
    return {
        kind: {
            "source_scores": of_source.layers[kind][0].tolist(),
            "target_scores": of_target.layers[kind][0].tolist(),
            "map": [list(p) for p in zip(final.source.layers[kind], final.target.layers[kind], strict=True)],
            **named,
            **pairing.described(final.source.layers[kind], [kind]),
        }
        for kind in KINDS
    }
