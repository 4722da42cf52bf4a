"""What a method locates, in a form that can be compared: a choice at every place, and the source layers that give.

A place is a layer of a model and a kind: `ffn` and `attention` neurons of both models, or a block of each matrix of the source.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from pkt.extract.jaccard import Chance

if TYPE_CHECKING:
    from pkt.run import Run
    from pkt.tasks.base import Task


ALL = "all"
"""Stands in a column of layers or parts where all are taken together."""


class Place(NamedTuple):
    """Where something is chosen."""

    model: str
    """`source` or `target`."""
    kind: str
    layer: int | None
    """None where the matrix belongs to no layer."""


@dataclass(frozen=True)
class Located:
    """One choice.

    `chosen` by place: neurons by number, or a block's first row and column. `layers` by kind: the source layers with the highest scores, as
    many as the target has, in depth order.
    """

    chosen: dict[Place, Any]
    layers: dict[str, list[int]]


class Locations(Protocol):
    """What a recipe locates when it is asked in other ways. Scores come through the memo of its handles, one model in memory at a time."""

    what: str
    """What is located, for the sentence."""
    is_drawn: bool
    """Whether it is drawn at random, and not chosen by scores: then only layers depend on what is asked."""

    def on_examples(self, index: Sequence[int]) -> Located:
        """With some of the examples to locate with, by number."""

    def on_task(self, task: Task) -> Located:
        """With the examples of a task."""

    def in_dtype(self, dtype: str) -> Located:
        """With the recipe's examples, both models in a dtype."""

    def draws(self, seed: int) -> Located | None:
        """A random draw with a seed, where the method draws and how is known; a run at that seed draws in the course of its work, another one."""

    def agreement(self, place: Place, one: Any, other: Any) -> float:
        """Jaccard index of two choices at a place."""

    def chance(self, place: Place) -> Chance:
        """Jaccard index of two random choices there."""

    def sizes(self, place: Place) -> tuple[int, int]:
        """How many are chosen there, and of how many."""


def locations_of(run: Run) -> Locations | None:
    """What the recipe's method locates; None where it locates nothing, or in a way of its own."""
    from pkt.align.source_start import SourceStartConfig
    from pkt.extract.location import LocationConfig
    from pkt.stability.blocks import BlockLocations
    from pkt.stability.neurons import NeuronLocations

    if run.method.locate is None:
        return None
    if isinstance(run.options, LocationConfig):
        return NeuronLocations(run)
    if isinstance(run.options, SourceStartConfig):
        return BlockLocations(run)
    return None
