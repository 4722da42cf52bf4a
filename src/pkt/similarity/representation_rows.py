"""Estimates of similarity as rows of tables."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from pkt.similarity.estimates import Estimate, difference_of_means, mean_over_pairs, ranked
from pkt.similarity.resampling import interval

Row = dict[str, Any]
PUBLISHED = {"up": (0.691, 0.156), "down": (0.450, 0.245), "v": (0.479, 0.162), "o": (0.411, 0.188)}
"""Mean and standard deviation over pairs of layers of Llama-2-7B and 13B (arXiv:2505.14436), whose metric is not named."""


def module_row(module: str, measure: str, found: Estimate) -> Row:
    mean, low, high = found.of(mean_over_pairs)
    chance = mean_over_pairs(found.chance)
    known = measure.startswith("cka") and module in PUBLISHED
    return {
        "mean": mean,
        "sd": float(found.value.std(correction=0)),
        "low": low,
        "high": high,
        "null_mean": float(chance.mean()),
        "null_95": float(chance.quantile(0.95)),
        "pairs_above_null": int((found.value > found.chance.quantile(0.95, dim=0)).sum()),
        "pairs": found.value.numel(),
        "published_mean": PUBLISHED[module][0] if known else None,
        "published_sd": PUBLISHED[module][1] if known else None,
    }


def pair_rows(found: Estimate) -> list[Row]:
    low, high = found.bounds()
    columns = {
        "value": found.value,
        "low": low,
        "high": high,
        "null_mean": found.chance.mean(0),
        "null_95": found.chance.quantile(0.95, dim=0),
    }
    return _by_pair(columns)


def _by_pair(columns: dict[str, Tensor]) -> list[Row]:
    """One row for each pair of layers from matrices (Ls, Lt)."""
    num_source, num_target = columns["value"].shape
    return [
        {"source_layer": i, "target_layer": j, **{name: float(values[i, j]) for name, values in columns.items()}}
        for i in range(num_source)
        for j in range(num_target)
    ]


def best_rows(found: Estimate) -> list[Row]:
    """The best source layer of every target layer; `null_95` is that of the best by chance, `lead` that over the second."""
    rows: list[Row] = []
    low, high = found.bounds()
    null = found.chance.max(1).values.quantile(0.95, dim=0)
    for j, order in enumerate(ranked(found.value)):
        i, second = order[0], order[1] if len(order) > 1 else None
        lead = found.of(partial(_lead, i, second, j)) if second is not None else (None, None, None)
        rows.append(
            {
                "target_layer": j,
                "source_layer": i,
                "value": float(found.value[i, j]),
                "low": float(low[i, j]),
                "high": float(high[i, j]),
                "null_95": float(null[j]),
                "second": second,
                **dict(zip(("lead", "lead_low", "lead_high"), lead, strict=True)),
            }
        )
    return rows


def _lead(first: int, second: int, target: int, value: Tensor) -> Tensor:
    return value[..., first, target] - value[..., second, target]


def difference_row(one: Estimate, other: Estimate) -> Row:
    """The means over pairs of layers, one's less the other's."""
    value, low, high = difference_of_means(one, other)
    return {"value": value, "low": low, "high": high}


def difference_rows(one: Estimate, other: Estimate) -> list[Row]:
    """One less the other for every pair of layers; none where they have different numbers of layers."""
    if one.value.shape != other.value.shape:
        return []
    value = one.value - other.value
    low, high = interval(value, one.without - other.without)
    return _by_pair({"value": value, "low": low, "high": high})
