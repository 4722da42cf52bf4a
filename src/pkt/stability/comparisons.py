"""How far choices agree: pairs of what was located, as rows of tables with the level that chance alone gives."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Generator

from pkt.extract.jaccard import Chance, corrected
from pkt.stability.located import ALL, Located, Locations, Place

Row = dict[str, Any]
MOST_PAIRS = 1000
"""Of single examples that are compared; of more, so many are drawn."""


class Pair(NamedTuple):
    """Two choices that are compared, by name."""

    one: str
    other: str
    located: tuple[Located, Located]


def all_pairs(found: Mapping[str, Located], gen: Generator | None = None) -> list[Pair]:
    """Every two of the choices; of more than `MOST_PAIRS`, so many drawn by `gen`."""
    pairs = list(itertools.combinations(found, 2))
    if gen is not None and len(pairs) > MOST_PAIRS:
        drawn = torch.randperm(len(pairs), generator=gen)[:MOST_PAIRS].tolist()
        pairs = [pairs[i] for i in sorted(drawn)]
    return [Pair(one, other, (found[one], found[other])) for one, other in pairs]


def halves(num: int, seed: int) -> tuple[list[int], list[int]]:
    """Two random halves of `num` examples, equally large and with none in common."""
    order = torch.randperm(num, generator=Generator().manual_seed(seed)).tolist()
    return order[: num // 2], order[num // 2 : num // 2 * 2]


def agreement_rows(locations: Locations, between: str, pairs: Sequence[Pair]) -> tuple[list[Row], list[Row]]:
    """Rows of the tables `jaccard` (by place and over all layers) and `pairs` (by pair, over all layers)."""
    found: dict[tuple[str, str], dict[Place, list[float]]] = {}
    for place in pairs[0].located[0].chosen if pairs else ():
        values = [locations.agreement(place, one.chosen[place], other.chosen[place]) for *_, (one, other) in pairs]
        found.setdefault((place.model, place.kind), {})[place] = values
    by_place, by_pair = [], []
    for (model, kind), values_of in found.items():
        chances = [locations.chance(place) for place in values_of]
        for place, chance in zip(values_of, chances, strict=True):
            by_place.append(_row(locations, between, place, place.layer, values_of[place], chance))
        means = [statistics.fmean(values) for values in zip(*values_of.values(), strict=True)]
        num = len(chances)
        together = Chance(sum(c.mean for c in chances) / num, sum(c.sd**2 for c in chances) ** 0.5 / num)
        by_place.append(_row(locations, between, next(iter(values_of)), ALL, means, together))
        by_pair += [
            {
                "between": between,
                "one": pair.one,
                "other": pair.other,
                "kind": kind,
                "model": model,
                "jaccard": mean,
                "chance": together.mean,
                "corrected": corrected(mean, together.mean),
            }
            for pair, mean in zip(pairs, means, strict=True)
        ]
    return by_place, by_pair


def _row(
    locations: Locations, between: str, place: Place, layer: int | str | None, values: Sequence[float], chance: Chance
) -> Row:
    """One row of the table `jaccard`."""
    chosen, of = locations.sizes(place)
    mean = statistics.fmean(values)
    return {
        "between": between,
        "kind": place.kind,
        "model": place.model,
        "layer": layer,
        "mean": mean,
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "min": min(values),
        "max": max(values),
        "pairs": len(values),
        "chance": chance.mean,
        "chance_sd": chance.sd,
        "ratio": mean / chance.mean if chance.mean else None,
        "corrected": corrected(mean, chance.mean),
        "chosen": chosen,
        "of": of,
    }


def layer_rows(
    examples: Sequence[Located], of_halves: Sequence[Located], own: Mapping[str, Sequence[int]], num_layers: int
) -> list[Row]:
    """How often each source layer is among the highest: rows of the table `layers`.

    Args: own the recipe's own choice, by kind. num_layers of the source.
    """
    rows = []
    for kind in examples[0].layers:
        chosen = own.get(kind, [])
        for layer in range(num_layers):
            row: Row = {"kind": kind, "source_layer": layer}
            for name, found in (("examples", examples), ("halves", of_halves)):
                times = sum(layer in one.layers[kind] for one in found)
                row |= {name: times, f"of_{name}": len(found), f"share_{name}": times / len(found) if found else None}
            rows.append(row | {"chosen": layer in chosen, "chance": len(examples[0].layers[kind]) / num_layers})
    return rows
