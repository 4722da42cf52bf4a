"""What the files of a memo took to make, told to whoever finds them made: what is shared counts for all who use it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from pkt.files import write_json


@dataclass
class Touched:
    """The memo files that a block made or found made, and what those took that it found."""

    files: set[Path] = field(default_factory=set)
    flop: float | None = 0.0
    """None where one of them does not say."""
    seconds: float = 0.0


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
    flop = None if parts.flop is None else (count.flop + parts.flop) / len(paths)
    seconds = (time.perf_counter() - start + parts.seconds) / len(paths)
    for path in paths:
        write_json(_cost_path(path), {"flop": flop, "seconds": seconds})


def found_made(path: Path) -> None:
    """Say that a memo file was read instead of made."""
    try:
        cost = json.loads(_cost_path(path).read_text(encoding="utf-8"))
        flop, seconds = None if cost["flop"] is None else float(cost["flop"]), float(cost["seconds"])
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
    ):  # an older version made it, or it was stopped before that was written
        flop, seconds = None, 0.0
    for touched in _WATCHING.get():
        if path in touched.files:
            continue
        touched.files.add(path)
        touched.flop = None if touched.flop is None or flop is None else touched.flop + flop
        touched.seconds += seconds


def _cost_path(path: Path) -> Path:
    return path.with_suffix(".cost.json")
