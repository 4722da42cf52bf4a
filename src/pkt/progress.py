"""Progress of long work: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")
log = logging.getLogger(__name__)

EVERY = 30.0
"""Seconds between lines."""


def track(items: Sequence[T], what: str) -> Iterator[T]:
    """Iterate over `items` and show how far it got on standard error."""
    if sys.stderr.isatty() and len(items) > 1:
        from rich.console import Console
        from rich.progress import track as rich_track

        yield from rich_track(items, description=what, console=Console(stderr=True), transient=True)
        return
    start = last = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - last >= EVERY:
            last = now
            left = (now - start) / done * (len(items) - done)
            log.info("%s: %d of %d, about %.0f s left", what, done, len(items), left)
        yield item
