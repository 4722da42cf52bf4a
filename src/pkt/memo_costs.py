"""What the files of a memo took to make, told to whoever finds them made: what is shared counts for all who use it.

So does what a training took until the checkpoint that it continues from.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pkt.files import write_json


@dataclass(frozen=True)
class Cost:
    """Operations and seconds that something took."""

    flop: float | None = 0.0
    """None where that is not known."""
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        flop = None if self.flop is None or other.flop is None else self.flop + other.flop
        return Cost(flop, self.seconds + other.seconds)

    def write(self, path: Path) -> None:
        write_json(path, asdict(self))

    @staticmethod
    def read(path: Path) -> Cost:
        """What `write` wrote; not known where an older version wrote nothing, or it was stopped before."""
        try:
            cost = json.loads(path.read_text(encoding="utf-8"))
            return Cost(None if cost["flop"] is None else float(cost["flop"]), float(cost["seconds"]))
        except (OSError, ValueError, KeyError, TypeError):
            return Cost(None)


@dataclass
class Touched:
    """The memo files that a block made or found made, and what was spent before on what it found."""

    files: set[Path] = field(default_factory=set)
    found: Cost = Cost()
    """Of the files that it found."""
    continued: Cost = Cost()
    """Of the trainings that it continued, up to where it did."""


_WATCHING: ContextVar[tuple[Touched, ...]] = ContextVar("watching", default=())


@contextmanager
def watched() -> Iterator[Touched]:
    """Gather which memo files the block touches. Blocks may be nested."""
    touched = Touched()
    before = _WATCHING.set((*_WATCHING.get(), touched))
    try:
        yield touched
    finally:
        _WATCHING.reset(before)


@contextmanager
def making(*paths: Path) -> Iterator[None]:
    """Around what makes memo files: each keeps its share of what that took, beside it."""
    from pkt.flops import counted

    start = time.perf_counter()
    with watched() as parts, counted() as count:
        yield
    for touched in _WATCHING.get():
        touched.files.update(paths)
    spent = Cost(count.flop, time.perf_counter() - start) + parts.found
    share = Cost(None if spent.flop is None else spent.flop / len(paths), spent.seconds / len(paths))
    for path in paths:
        share.write(_cost_path(path))


def found_made(path: Path) -> None:
    """Say that a memo file was read instead of made."""
    cost = Cost.read(_cost_path(path))
    for touched in _WATCHING.get():
        if path not in touched.files:
            touched.files.add(path)
            touched.found += cost


def continued(cost: Cost) -> None:
    """Say what a training took until it was interrupted, when it continues."""
    for touched in _WATCHING.get():
        touched.continued += cost


def _cost_path(path: Path) -> Path:
    return path.with_suffix(".cost.json")
