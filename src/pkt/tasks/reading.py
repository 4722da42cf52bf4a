"""From rows to examples: what every reader of real data does with a row, good or corrupt."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pkt.errors import DataError
from pkt.tasks.base import Example
from pkt.tasks.mmlu import LETTERS

log = logging.getLogger(__name__)

Row = dict[str, Any]
LOST_CHOICE = "a choice reads `nan`, lost when the data was made"
_reported: set[str] = set()
"""Rows that this process has reported: several readers may meet one row."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """A row that was left out of a split."""

    where: str
    id: str
    reason: str
    like: str = ""
    """Id of the item that it repeats, if that is the reason."""


def examples_of(
    rows: Iterable[tuple[str, Row]], read: Callable[[Row, str], Example], dropped: list[Dropped]
) -> list[Example]:
    """The rows as examples; corrupt ones are reported once, and put down in `dropped`.

    Args:
        rows: each with its place.
    """
    found = []
    for where, row in rows:
        example = read(row, where)
        if is_corrupt(example):
            drop(Dropped(where, example.id, LOST_CHOICE), dropped)
        else:
            found.append(example)
    return found


def check_ids(examples: Iterable[Example], file: str) -> None:
    """Raise DataError if two items of a test set have one id, by which they are drawn, graded and paired."""
    twice = [name for name, count in Counter(e.id for e in examples).items() if count > 1]
    if twice:
        raise DataError(f"{file}: {len(twice)} ids stand there more than once ({twice[0]}); give every item its own")


def is_corrupt(example: Example) -> bool:
    """Whether a choice of a multiple-choice row reads `nan`, a missing value."""
    return example.choices == LETTERS and any(f"\n{letter}. nan\n" in example.prompt for letter in LETTERS)


def drop(row: Dropped, dropped: list[Dropped]) -> None:
    """Put a row down as left out, and say so once."""
    if row not in dropped:
        dropped.append(row)
    if row.where not in _reported:
        _reported.add(row.where)
        log.warning("%s (%s) dropped: %s", row.where, row.id, row.reason)
