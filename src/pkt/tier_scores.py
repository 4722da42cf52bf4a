"""Scores by tier, from the score files of one seed or of several.

S seeds, I items.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pkt.certify.statistics import spread
from pkt.errors import DataError
from pkt.evaluation.statistics import mean_and_error
from pkt.report.table import tier_order

AGAIN = "run `pkt certify` again, what is done is kept"


@dataclass(frozen=True)
class Level:
    """A score in [0, 1] with one standard error: clustered by unit, and with several seeds for their spread too."""

    score: float
    standard_error: float | None
    num_items: int
    num_units: int
    num_seeds: int = 1


@dataclass(frozen=True)
class Items:
    """Scores of the same items at several seeds."""

    ids: list[str]
    units: list[str]
    tiers: list[str]
    scores_SI: np.ndarray

    def of_tier(self, tier: str) -> Items:
        """Those of one tier; `all` means all."""
        kept = [i for i, own in enumerate(self.tiers) if tier in (own, "all")]
        ids, units, tiers = ([held[i] for i in kept] for held in (self.ids, self.units, self.tiers))
        return Items(ids, units, tiers, self.scores_SI[:, kept])


def read_items(paths: Sequence[Path], task: str, arm: str | None = None) -> Items:
    """The scores in the score files of several seeds.

    Args:
        arm: where the files hold several, whose lines count; None means all lines.

    Raises:
        DataError: a file is missing or damaged, or holds other items than the first.
    """
    read_ = [_lines(path, task, arm) for path in paths]
    for path, lines in zip(paths, read_, strict=True):
        if [line["id"] for line in lines] != [line["id"] for line in read_[0]]:
            raise DataError(f"{path}: holds other items than {paths[0]}; delete it, and {AGAIN}")
    ids, units, tiers = ([line[key] for line in read_[0]] for key in ("id", "unit", "tier"))
    return Items(ids, units, tiers, np.array([[line["score"] for line in lines] for lines in read_], float))


def fingerprint(ids: Sequence[str]) -> str:
    """The same for the same items, whatever their order."""
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()[:16]


def levels(paths: Sequence[Path], task: str) -> dict[str, Level]:
    """Scores by tier, `all` last, of the score files of several seeds; raises as `read_items`."""
    return levels_of(read_items(paths, task))


def levels_of(items: Items) -> dict[str, Level]:
    """Scores by tier, `all` last."""
    found = {}
    for tier in dict.fromkeys([*filter(None, items.tiers), "all"]):
        kept = items.of_tier(tier)
        if kept.ids:
            found[tier] = _level(kept.scores_SI, kept.units)
    return ordered(found)


def _level(scores_SI: np.ndarray, units: list[str]) -> Level:
    """Mean over seeds and items with its standard error."""
    if len(scores_SI) == 1 or len(set(units)) == 1:  # one unit alone has no error that could be known
        mean, error = mean_and_error(scores_SI.mean(0).tolist(), units)
    else:
        made = spread(scores_SI, np.zeros_like(scores_SI), units)
        mean, error = made.mean, made.error_and_df()[0]
    known = None if np.isnan(error) else error
    return Level(mean, known, len(units), len(set(units)), len(scores_SI))


def _lines(path: Path, task: str, arm: str | None) -> list[dict[str, Any]]:
    existing(path)
    try:
        every = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        wanted = [line for line in every if line["task"] == task and arm in (None, line.get("arm"))]
        found = [{key: line[key] for key in ("id", "unit", "tier", "score")} for line in wanted]
        if not all(0 <= line["score"] <= 1 for line in found):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path}: damaged; delete it, and {AGAIN}") from None
    return found


def existing(path: Path) -> Path:
    """The path of a file that is there, else DataError."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; {AGAIN}")
    return path


def ordered(found: Mapping[str, Level]) -> dict[str, Level]:
    """In the order in which tiers are shown."""
    return {tier: found[tier] for tier in tier_order(found)}
