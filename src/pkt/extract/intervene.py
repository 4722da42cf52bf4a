"""Verification by intervention: does the answer's probability change when neurons are silenced or doubled? (arXiv:2104.08696)

The activations of an example's neurons, the inputs of `down_proj` (FFN) or `o_proj` (attention) at the last position, are multiplied by a
factor in an ordinary forward pass, in all layers at once, each as it comes out of the layers below: 0 to suppress, 2 to amplify. Beside
them stand as many neurons of the same layers, drawn at random.

B interventions, T tokens, L layers, N neurons of a layer, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor, nn

from pkt.errors import UnsupportedModelError
from pkt.extract.neurons import NeuronSet
from pkt.extract.scores import Attribution, encode_answers
from pkt.models.families import KINDS, Dims
from pkt.models.lm import LM
from pkt.models.parts import logits
from pkt.progress import track
from pkt.tasks.base import Example

if TYPE_CHECKING:
    from transformers import PreTrainedModel

INTERVENTIONS = {"suppress": 0.0, "amplify": 2.0}
VERSION = 1
"""Of the results: raise it when they change for the same inputs."""

Sets = dict[str, list[list[int]]]
"""Neurons of one example: kind -> for every layer of the model, the indices in it."""


def of_layers(chosen: NeuronSet, dims: Dims) -> Sets:
    """Chosen neurons by layer of the model; none in the layers that were not chosen."""
    found: Sets = {kind: [[] for _ in range(dims.layers)] for kind in KINDS}
    for kind in KINDS:
        for layer, index in zip(chosen.layers[kind], chosen.index[kind].tolist(), strict=True):
            found[kind][layer] = index
    return found


def refined_sets(scores: Attribution) -> list[Sets]:
    """The refined neurons of every example."""
    assert scores.refined is not None
    num = len(scores.refined["ffn"])
    return [
        {kind: [row_N.nonzero()[:, 0].tolist() for row_N in scores.refined[kind][e]] for kind in KINDS}
        for e in range(num)
    ]


def random_like(sets: Sets, dims: Dims, gen: Generator) -> Sets:
    """As many neurons of every layer and kind, drawn without repeats from all of them."""
    return {
        kind: [torch.randperm(dims.neurons(kind), generator=gen)[: len(index)].tolist() for index in sets[kind]]
        for kind in KINDS
    }


@dataclass(frozen=True)
class Change:
    """What an intervention on one kind does to the answer's probability, over the examples."""

    kind: str
    intervention: str
    located: Tensor
    """(E,) change of the probability."""
    random: Tensor
    """The same with random neurons."""
    neurons: float
    """Neurons of the model that are changed, on average over the examples."""


def interventions(
    lm: LM, examples: Sequence[Example], style: str, sets: Sequence[Sets], gen: Generator
) -> tuple[Tensor, list[Change]]:
    """Suppress and amplify each example's neurons, and random ones.

    Args: sets for every example; gen draws the random neurons, anew for every example.
    Returns: (E,) the answers' probabilities without an intervention, and the changes.
    Raises: UnsupportedModelError: a probability is not finite.
    """
    plan = [(kind, name) for kind in KINDS for name in INTERVENTIONS]
    rows = []
    with lm.for_location() as model, torch.no_grad():
        ids = encode_answers(lm, examples, style)
        for i in track(range(len(ids)), f"interventions in {lm.name}"):
            drawn = random_like(sets[i], lm.dims, gen)
            factors = [
                {kind: [(index, INTERVENTIONS[name]) for index in which[kind]]}
                for which in (sets[i], drawn)
                for kind, name in plan
            ]
            rows.append(probabilities(model, lm, ids[i], [{}, *factors]))
    found_EB = torch.stack(rows)
    if not found_EB.isfinite().all():
        raise UnsupportedModelError(
            f"{lm.name}: probabilities are not finite in {lm.dtype}; set dtype=float32 or dtype=bfloat16 in the recipe"
        )
    change_EB = found_EB[:, 1:] - found_EB[:, :1]
    size = {kind: sum(len(index) for s in sets for index in s[kind]) / len(sets) for kind in KINDS}
    changes = [
        Change(kind, name, change_EB[:, b], change_EB[:, len(plan) + b], size[kind])
        for b, (kind, name) in enumerate(plan)
    ]
    return found_EB[:, 0], changes


Factors = dict[str, list[tuple[list[int], float]]]
"""kind -> for every layer, neurons and the factor on their activations."""


def probabilities(model: PreTrainedModel, lm: LM, ids: list[int], factors: Sequence[Factors]) -> Tensor:
    """The probability of the last token of `ids` under every intervention, (B,) float32. One forward pass."""
    with _scaled(model, lm, factors):
        hidden_BTD = model.get_submodule(lm.family.decoder)(
            torch.tensor([ids[:-1]] * len(factors), device=lm.torch_device), use_cache=False
        )[0]
        logits_BV = logits(model, lm, hidden_BTD[:, -1])
    return logits_BV.softmax(-1)[:, ids[-1]].cpu()


@contextmanager
def _scaled(model: PreTrainedModel, lm: LM, factors: Sequence[Factors]) -> Iterator[None]:
    """Multiply activations at the last position; row b of the batch by `factors[b]`."""
    handles = []

    def scale(kind: str, layer: int) -> None:
        factor_BN = torch.ones(len(factors), lm.dims.neurons(kind))
        for row_N, given in zip(factor_BN, factors, strict=True):
            index, factor = given[kind][layer] if kind in given else ([], 1.0)
            row_N[index] = factor

        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            changed_BTN = args[0].clone()
            changed_BTN[:, -1] *= factor_BN.to(changed_BTN)
            return (changed_BTN, *args[1:])

        handles.append(model.get_submodule(lm.family.module(KINDS[kind][1], layer)).register_forward_pre_hook(hook))

    try:
        for kind in KINDS:
            for layer in range(lm.dims.layers):
                scale(kind, layer)
        yield
    finally:
        for handle in handles:
            handle.remove()


def mean_and_error(values_E: Tensor) -> tuple[float, float | None]:
    """Mean and standard error over examples; no error for a single one."""
    n = len(values_E)
    return float(values_E.mean()), float(values_E.std()) / math.sqrt(n) if n > 1 else None
