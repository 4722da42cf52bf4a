"""Accuracy with a standard error that knows which items belong together."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from pkt.tasks.mmlu_groups import parts

KS = (1, 5, 10, 20, 50, 100)
"""Of pass@k, as far as there are samples."""


def mean_and_error(
    scores: Sequence[float], units: Sequence[str], weights: Sequence[float] | None = None
) -> tuple[float, float]:
    """Mean and its standard error, clustered by unit.

    With residuals e, times their weights, summed within each of G units, SE = sqrt(G / (G - 1) * sum_g (sum e)^2) / sum of
    weights. With one item in every unit this is the ordinary standard error of a mean. One unit alone has no error that
    could be known: NaN.
    """
    values = np.asarray(scores, dtype=float)
    weight = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=float)
    mean = float(values @ weight / weight.sum())
    sums: dict[str, float] = defaultdict(float)
    for unit, residual in zip(units, (values - mean) * weight, strict=True):
        sums[unit] += residual
    groups = len(sums)
    if groups < 2:
        return mean, float("nan")
    return mean, float(np.sqrt(groups / (groups - 1) * sum(s * s for s in sums.values())) / weight.sum())


def _change(items: Sequence[dict[str, Any]], before: Sequence[float | None]) -> dict[str, float | None]:
    """Change from the target's scores of the same items, with its paired standard error; nothing if an item lacks one."""
    if items[0]["arm"] == "target" or any(score is None for score in before):
        return {}
    differences = [line["score"] - score for line, score in zip(items, before, strict=True) if score is not None]
    mean, error = mean_and_error(differences, [line["unit"] for line in items])
    return {"change": mean, "change_error": None if np.isnan(error) else error}


def pass_at(samples: int, correct: int, k: int) -> float:
    """Probability that one of k answers, drawn from `samples` of which `correct` are right, is right: 1 - C(n-c, k) / C(n, k).

    Source: Chen et al. 2021 (arXiv:2107.03374), equation 1; unbiased over the answers that a model gives.
    """
    return 1 - math.comb(samples - correct, k) / math.comb(samples, k)


def _passes(items: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """pass@k of items with several answers, for the usual k, with one standard error over items, clustered by unit."""
    samples = min((len(line["outputs"]) for line in items if "outputs" in line), default=0)
    if not all("outputs" in line for line in items):
        return {}
    rows = []
    for k in (k for k in KS if k <= samples):
        found = [pass_at(len(line["outputs"]), line["correct"], k) for line in items]
        mean, error = mean_and_error(found, [line["unit"] for line in items])
        rows.append({"k": k, "score": mean, "standard_error": None if np.isnan(error) else error})
    return {"pass_at": rows}


def summarise(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Score lines to one row per arm and tier, and `all`, in the order in which they first appear."""
    grouped: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in lines:
        for tier in (line["tier"], "all") if line["tier"] else ("all",):
            grouped.setdefault((line["arm"], tier), []).append(line)
    paired = {(line["arm"], line["seed"], line["id"]): line["score"] for line in lines}
    rows = []
    for (arm, tier), items in sorted(grouped.items(), key=lambda kv: kv[0][1] == "all"):
        mean, error = mean_and_error([line["score"] for line in items], [line["unit"] for line in items])
        rows.append(
            {
                "arm": arm,
                "tier": tier,
                "score": mean,
                "standard_error": None if np.isnan(error) else error,
                "num_items": len(items),
                "num_units": len({line["unit"] for line in items}),
                "seeds": len({line["seed"] for line in items}),
            }
            | _passes(items)
            | _change(items, [paired.get(("target", line["seed"], line["id"])) for line in items])
        )
    return rows


def by_part(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Score lines of MMLU to one row per arm and group, sub-category and subject.

    Standard errors are clustered by subject, as that of all items; of a part that is one subject, they are over its items.
    """
    rows = []
    for arm in dict.fromkeys(line["arm"] for line in lines):
        for kind, name, of_part in parts([line for line in lines if line["arm"] == arm]):
            units = [line["unit"] for line in of_part]
            clusters = units if len(set(units)) > 1 else [line["id"] for line in of_part]
            mean, error = mean_and_error([line["score"] for line in of_part], clusters)
            rows.append(
                {
                    "arm": arm,
                    "kind": kind,
                    "name": name,
                    "score": mean,
                    "standard_error": None if np.isnan(error) else error,
                    "num_items": len(of_part),
                }
            )
    return rows
