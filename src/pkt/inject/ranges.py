"""Range of a delta against the target's weights in the same entries: extremes, root mean squares and quantiles, one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor

from pkt.inject.changes import Change, Lines
from pkt.inject.delta import Delta, Key
from pkt.models.families import LINE_AXIS
from pkt.models.lm import LM

QUANTILES = {"q01": 0.01, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q99": 0.99}
"""Of the change's entries, by the name of their column."""


def weights_under(target: LM, key: Key, change: Change) -> Tensor:
    """The target's weights that a change is added to, float32: its lines alone, or the whole part."""
    layer, part = key
    if not isinstance(change, Lines):
        return target.part(layer, part)
    if layer is not None and LINE_AXIS.get(part) == change.axis:
        return target.slices(part, {layer: change.index.tolist()})[layer]
    return target.part(layer, part).index_select(change.axis, change.index)


def ranges(delta: Delta, target: LM) -> Iterator[tuple[Key, dict[str, Any]]]:
    """For every changed tensor: entries, `min`, `max`, `rms` and quantiles of the change, the same of the weights as `weight_...`, the
    largest absolute change over the largest absolute weight (`max_ratio`), and the root mean squares' ratio (`rms_ratio`).

    A ratio is None where the weights are zero. In memory is one tensor at a time, dense.
    """
    for key, change in delta.changes.items():
        own, weights = _range(change.entries()), _range(weights_under(target, key, change))
        row: dict[str, Any] = {
            "entries": change.size(),
            **own,
            **{f"weight_{name}": value for name, value in weights.items()},
        }
        largest, theirs = (max(abs(found["min"]), abs(found["max"])) for found in (own, weights))
        row["max_ratio"] = largest / theirs if theirs else None
        row["rms_ratio"] = own["rms"] / weights["rms"] if weights["rms"] else None
        yield key, row


def _range(entries: Tensor) -> dict[str, float]:
    values = entries.detach().float().reshape(-1).numpy()
    quantiles = np.quantile(values, list(QUANTILES.values()))
    return {
        "min": float(values.min()),
        "max": float(values.max()),
        "rms": float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))),
        **dict(zip(QUANTILES, map(float, quantiles), strict=True)),
    }
