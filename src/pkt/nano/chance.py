"""What the best constant guess scores in a tier of a nano task's test split."""

from __future__ import annotations

from functools import cache

from pkt.nano import world


@cache
def chance(task: str, tier: str) -> float:
    """Of the task `nano/mmlu` and the like; tier `all` is the whole test split. Of all items, however few a limit draws."""
    name = task.removeprefix("nano/")
    return world.best_guess(name, [row for row in world.splits(name)["test"] if tier in (row["tier"], "all")])
