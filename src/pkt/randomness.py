"""Keeping a library's seeding to itself."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def own_randomness(seed: int | None = None) -> Iterator[None]:
    """Global generators of Python, numpy and torch, seeded if asked to, are put back on exit as they were."""
    import numpy
    import torch

    states = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng():
            if seed is not None:
                random.seed(seed)
                numpy.random.seed(seed % 2**32)
                torch.manual_seed(seed)
            yield
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])
