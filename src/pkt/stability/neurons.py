"""Located neurons of both models, at the recipe's transfer rate, in every layer of each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Generator

from pkt.errors import UnsupportedModelError
from pkt.extract.jaccard import Chance, chance_of_sets, jaccard
from pkt.extract.layers import top_scores
from pkt.extract.location import LocationConfig, counts
from pkt.extract.locators import scores_of
from pkt.extract.neurons import ranked
from pkt.extract.scores import Attribution
from pkt.models.families import KINDS
from pkt.models.lm import LM
from pkt.stability.located import Located, Place
from pkt.tasks.base import Task

if TYPE_CHECKING:
    from pkt.run import Run

Scores = tuple[Attribution, Attribution]
"""Of source and target."""


class NeuronLocations:
    """Neurons of a method with the options `LocationConfig`."""

    what = "neurons"

    def __init__(self, run: Run) -> None:
        self.run = run
        self.cfg: LocationConfig = run.options
        self.num = counts(run.target.dims, self.cfg.transfer_rate)
        self.is_drawn = self.cfg.is_random

    @cached_property
    def _by_example(self) -> Scores:
        run = self.run
        source, target = scores_of((run.source, run.target), run.task, self.cfg, run.style, per_example=True)
        return source, target

    def on_examples(self, index: Sequence[int]) -> Located:
        """The neurons with the highest sums of these examples' scores; of one example, those that `locate: per_example` takes."""
        source, target = (_some(found, index) for found in self._by_example)
        return self._located((source, target))

    def on_task(self, task: Task) -> Located:
        source, target = scores_of((self.run.source, self.run.target), task, self.cfg, self.run.style)
        return self._located((source, target))

    def in_dtype(self, dtype: str) -> Located:
        handles = [in_dtype(lm, dtype) for lm in (self.run.source, self.run.target)]
        try:
            source, target = scores_of(handles, self.run.task, self.cfg, self.run.style)
        except UnsupportedModelError as e:
            raise UnsupportedModelError(f"{e}; or leave {dtype} out of analysis.dtypes") from e
        return self._located((source, target))

    def draws(self, seed: int) -> Located:
        gen = Generator().manual_seed(seed)
        source, target = (found.summed().with_random_neurons(gen) for found in self._by_example)
        return self._located((source, target))

    def agreement(self, place: Place, one: list[int], other: list[int]) -> float:
        return jaccard(one, other)

    def chance(self, place: Place) -> Chance:
        k, num = self.sizes(place)
        return chance_of_sets(k, k, num)

    def sizes(self, place: Place) -> tuple[int, int]:
        model = self.run.source if place.model == "source" else self.run.target
        return self.num[place.kind], model.dims.neurons(place.kind)

    def _located(self, scores: Scores) -> Located:
        depth, name = self.run.target.dims.layers, self.run.source.name
        chosen = {
            Place(model, kind, layer): index
            for model, found in zip(("source", "target"), scores, strict=True)
            for kind in KINDS
            for layer, index in enumerate(ranked(found.neurons[kind][0], self.num[kind])[0].tolist())
        }
        return Located(chosen, {kind: top_scores(scores[0].layers[kind][0], depth, name) for kind in KINDS})


def in_dtype(lm: LM, dtype: str) -> LM:
    """A handle on the same model with its weights in another dtype."""
    return LM(lm.name, revision=lm.revision, device=lm.device, dtype=dtype, memo=lm.memo)


def _some(found: Attribution, index: Sequence[int]) -> Attribution:
    """Scores of some examples, summed."""
    at = torch.tensor(list(index))
    layers, neurons = ({k: t[at] for k, t in part.items()} for part in (found.layers, found.neurons))
    return Attribution(layers, neurons).summed()
