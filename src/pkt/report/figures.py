"""A picture of a report with its words: what is shown, how to read it, what chance would give."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One picture, with the table behind it where that helps a reader."""

    name: str
    """Unique on its page, fit for an id and a file name."""
    title: str
    svg: str
    shown: str
    """What is shown."""
    read: str
    """How to read it, and what it says here."""
    chance: str
    """What would be expected by chance."""
    origin: str
    """The file that its numbers come from."""
    columns: list[str] = field(default_factory=list)
    """Heads of the table below the picture; none: no table."""
    rows: list[list[Any]] = field(default_factory=list)
    """Cells of that table, as people read them."""
