"""Leave to run code that a model has written."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Execution:
    """Whether and how generated code is run. It is no part of a recipe: the machine's owner decides."""

    allowed: bool = False
    """`--allow-code-execution`."""
    is_sandboxed: bool = True
    """False with the unsafe flag alone: programs run as the user, with the user's files and network."""
    workers: int = 0
    """Programs at a time; 0: one per core."""
