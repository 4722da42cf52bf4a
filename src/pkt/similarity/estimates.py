"""A similarity of two models with what chance would give and with its interval, layer by layer.

Ls and Lt layers of source and target, B permutations, G groups of texts, P positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from pkt.similarity.measures import CKA, CKA_BIASED, RSA, Measure, each, inner, ridge_measure
from pkt.similarity.resampling import by_chance, deal, hold_out, interval, permutation

FIXED: Mapping[str, Measure] = {"cka": CKA, "cka_biased": CKA_BIASED, "rsa": RSA}
MEASURES = (*FIXED, "ridge")


@dataclass(frozen=True)
class Design:
    """What is drawn once, so that all modules, measures and sources are compared on the same draws."""

    held: Tensor
    """(P,) bool: whether a position is held out from ridge regression."""
    group: Tensor
    """(P,): the group of texts that a position is left out with."""
    orders: list[Tensor]

    @staticmethod
    def draw(text_P: Tensor, groups: int, permutations: int, gen: Generator) -> Design:
        """Args: text_P the text of each position."""
        held_P = hold_out(text_P, gen)
        group_P = deal(text_P, held_P, min(groups, int(text_P.max()) + 1), gen)
        return Design(held_P, group_P, [permutation(text_P, held_P, gen) for _ in range(permutations)])


@dataclass(frozen=True)
class Estimate:
    """A measure for all pairs of layers, float64."""

    value: Tensor
    """(Ls, Lt)."""
    without: Tensor
    """Without each group of texts, (G, Ls, Lt)."""
    chance: Tensor
    """With permuted positions, (B, Ls, Lt)."""

    def bounds(self) -> tuple[Tensor, Tensor]:
        """The intervals of all pairs."""
        return interval(self.value, self.without)

    def of(self, statistic: Callable[[Tensor], Tensor]) -> tuple[float, float, float]:
        """Value and interval of a number that follows from the last two axes."""
        value = statistic(self.value)
        low, high = interval(value, statistic(self.without))
        return float(value), float(low), float(high)


@dataclass(frozen=True)
class Source:
    """One module of a model that is compared with the target."""

    grams: Tensor
    """(Ls, P, P)."""
    width: int
    """Number of features, for `ridge`."""


def estimates(
    name: str, sources: Mapping[str, Source], target_LPP: Tensor, design: Design, *, ridge: float
) -> dict[str, Estimate]:
    """A measure of `MEASURES` for every source, from the Grams of one module of all models.

    Sources share the target's forms: one more costs little.

    Args: ridge see `ridge_source`.
    """

    def measure_of(role: str, kept_P: Tensor) -> Measure:
        return FIXED[name] if name in FIXED else ridge_measure(design.held[kept_P], ridge, sources[role].width)

    every_P = torch.ones_like(design.held)
    whole = {role: measure_of(role, every_P) for role in sources}
    common = next(iter(whole.values()))
    prepared = {role: each(whole[role].prepare, source.grams) for role, source in sources.items()}
    target = each(common.prepare, target_LPP)
    without: dict[str, list[Tensor]] = {role: [] for role in sources}
    for group in range(int(design.group.max()) + 1):
        kept_P = design.group != group
        form = each(measure_of(next(iter(sources)), kept_P).target, _of(target, kept_P))
        for role in sources:
            without[role].append(inner(each(measure_of(role, kept_P).source, _of(prepared[role], kept_P)), form))
    of_source = {role: each(whole[role].source, prepared[role]) for role in sources}
    of_target = each(common.target, target)
    value = {role: inner(of_source[role], of_target) for role in sources}
    chance = by_chance({role: form.float() for role, form in of_source.items()}, of_target.float(), design.orders)
    return {role: Estimate(value[role], torch.stack(without[role]), chance[role]) for role in sources}


def _of(grams_LPP: Tensor, kept_P: Tensor) -> Tensor:
    """At some positions alone."""
    kept = kept_P.nonzero()[:, 0]
    return grams_LPP[:, kept][:, :, kept]


def mean_over_pairs(value: Tensor) -> Tensor:
    """Over the last two axes."""
    return value.mean((-2, -1))


def difference_of_means(one: Estimate, other: Estimate) -> tuple[float, float, float]:
    """One's mean over pairs of layers less the other's, with the interval that both share the texts of."""
    value = mean_over_pairs(one.value) - mean_over_pairs(other.value)
    low, high = interval(value, mean_over_pairs(one.without) - mean_over_pairs(other.without))
    return float(value), float(low), float(high)


def ranked(value: Tensor) -> list[list[int]]:
    """For every target layer all source layers, the most similar first; of equal ones the lower."""
    return torch.sort(value, dim=0, descending=True, stable=True).indices.T.tolist()
