"""What a layer's score is, by the locator that gave it, in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DEFAULT = "logprob_gain"
"""Layers that name no locator have its scores."""


@dataclass(frozen=True)
class LayerWords:
    """Of the figure of layer scores."""

    unit: str | None
    """For the axis; None where none compares the two models: then each one's scores stand over its largest."""
    shown: str
    chance: str


_ZERO = "If no layer carried the answer, all points would lie near zero. That both models peak at similar depth is common and says nothing about shared knowledge."
WORDS = {
    DEFAULT: LayerWords("nats", "How much each layer alone raises the log-probability of the right answers, in nats", _ZERO),
    "knowledge_neurons": LayerWords(
        "probability",
        "How much of the right answers' probability each layer's activations carry by integrated gradients, at their last position",
        _ZERO,
    ),
    "sensitivity": LayerWords(
        None,
        "The sum of |w dL/dw| over each layer's weights: what the loss on the right answers would move, to first order, if the weights were zero, with "
        "every sign taken away (a model that does not know the answers has far larger sums)",
        "No layer is at zero, for absolute values add up in layers that carry nothing, too; more weights make more of it. Only what stands out "
        "counts. That both models peak at similar depth is common and says nothing about shared knowledge.",
    ),
    "query_neurons": LayerWords(
        None,
        "FFN: how much each layer's neurons write towards what the most valuable attention neurons above it read, which has no unit that compares models; "
        "attention: how much each layer alone raises the log-probability of the right answers",
        f"FFNs with no valuable attention neuron above them are at zero, the last always. {_ZERO}",
    ),
}  # fmt: skip


def layer_words(layers: Mapping[str, Mapping[str, Any]]) -> LayerWords:
    """The words for a run's layer scores."""
    part = next(iter(layers.values()))
    name = part.get("locator", DEFAULT)
    of = "of one example, drawn at random" if part.get("examples") == 1 else "summed over the extract split"
    words = WORDS.get(name) or LayerWords(
        None, f"Each layer's score by the locator {name}, in a unit of its own", _ZERO
    )
    over = ", over the model's largest" if words.unit is None else ""
    return LayerWords(words.unit, f"{words.shown}, {of}{over}", words.chance)
