"""Scores by tier, from the score files of one seed or of several.

S seeds, I items.
"""

from __future__ import annotations

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


def levels(paths: Sequence[Path], task: str) -> dict[str, Level]:
    """Scores by tier, `all` last, of the score files of several seeds.

    Raises:
        DataError: a file is missing or damaged, or holds other items than the first.
    """
    read_ = [_lines(path, task) for path in paths]
    for path, lines in zip(paths, read_, strict=True):
        if [line["id"] for line in lines] != [line["id"] for line in read_[0]]:
            raise DataError(f"{path}: holds other items than {paths[0]}; delete it, and {AGAIN}")
    found = {}
    for tier in dict.fromkeys([*(line["tier"] for line in read_[0] if line["tier"]), "all"]):
        kept = [i for i, line in enumerate(read_[0]) if tier in (line["tier"], "all")]
        if kept:
            units = [read_[0][i]["unit"] for i in kept]
            found[tier] = _level(np.array([[lines[i]["score"] for i in kept] for lines in read_], float), units)
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


def _lines(path: Path, task: str) -> list[dict[str, Any]]:
    existing(path)
    try:
        every = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        found = [{key: line[key] for key in ("id", "unit", "tier", "score")} for line in every if line["task"] == task]
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
