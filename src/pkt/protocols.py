"""How the tasks of a recipe are asked."""

from __future__ import annotations

from typing import Any

from pkt.config import EvaluateSection, Recipe
from pkt.tasks.base import Task, fingerprint
from pkt.tasks.protocol import Protocol, resolved

OWN = ("shots", "samples", "temperature", "top_p")
"""Keys of `evaluate` that speak of the recipe's own task alone."""


def unset(recipe: Recipe) -> set[str]:
    """Keys of `evaluate` about the protocol that the recipe leaves alone: older recipes do not have them."""
    cfg, usual = recipe.evaluate, EvaluateSection()
    return {key for key in (*OWN, "too_long") if getattr(cfg, key) == getattr(usual, key)}


def protocol_of(recipe: Recipe, task: Task) -> Protocol:
    """A task's protocol: of the recipe's own task with what `evaluate` says, of a guard task as its format says.

    Raises:
        ConfigError: the task cannot be asked so.
    """
    cfg = recipe.evaluate
    given = {key: getattr(cfg, key) for key in OWN} if task.name == recipe.task.name else {}
    return resolved(task.format, task.name, too_long=cfg.too_long, **given)


def asking(recipe: Recipe, task: Task) -> list[Any]:
    """What of a recipe's protocol and of the format decides scores."""
    return decided(protocol_of(recipe, task), task)


def decided(protocol: Protocol, task: Task) -> list[Any]:
    """What of protocol and format decides scores; nothing for greedy answers without worked examples in the first version."""
    drawn = task.split("test")
    found: dict[str, Any] = protocol.differs()
    if protocol.shots:
        askers = {e.unit if task.format.shots_of_unit else "": e for e in drawn}.values()
        found["worked"] = fingerprint([shot for e in askers for shot in task.shots(e, protocol.shots)])
    if task.format.version > 1:
        found["version"] = task.format.version
    return [found] if found else []
