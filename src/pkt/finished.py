"""Which finished stages of a run folder are those of its recipe.

What another recipe left stays until it is made anew, but its record goes: no later stage reads it, no summary shows it.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from pkt.errors import DataError
from pkt.inject.delta import Delta
from pkt.stages import WRITTEN, key_of

if TYPE_CHECKING:
    from pkt.run import Run

log = logging.getLogger(__name__)

DECIDES = ("source", "target", "task", "method", "dtype", "seed")
"""Sections of a recipe that decide the delta."""


def align_key(run: Run) -> str:
    """Hash of all that decides the delta."""
    read = run.inputs(*run.method.reads(run.options))
    return key_of("align", read, run.options.model_dump(), run.recipe.seed, run.recipe.dtype)


def inject_key(run: Run, delta: str | None) -> str:
    """Hash of all that decides the export, of a delta with that digest."""
    return key_of("inject", delta, run.target.digest, run.recipe.export.model_dump())


def forget_others(run: Run) -> None:
    """Drop the records of stages that were finished with another recipe, and what sums them up."""
    records = run.stages.records()
    own: dict[str, bool] = {}
    if "align" in records:
        own["align"] = _is_own_delta(run, records["align"])
    if "inject" in records:
        delta = records.get("align", {"files": {}})["files"].get("delta.safetensors")
        own["inject"] = own.get("align", False) and records["inject"]["key"] == inject_key(run, delta)
    for name in records:
        stage, _, arm = name.partition(" ")
        if stage == "evaluate":
            own[name] = (arm != "result" or own.get("inject", False)) and _is_own_score(run, arm, records[name])
    others = [name for name, held in own.items() if not held]
    if not others:
        return
    log.warning("%s: %s of another recipe, to be made anew", run.folder, ", ".join(others))
    for name in others:
        run.stages.drop(name)
    for file in WRITTEN:
        (run.folder / file).unlink(missing_ok=True)


def _is_own_delta(run: Run, record: dict[str, Any]) -> bool:
    """By the recipe that the delta names, which takes no look at the source; else by the stage's key."""
    recipe = json.loads(run.recipe.model_dump_json())
    try:
        named = Delta.where_from(run.folder / "delta.safetensors")["recipe"]
        if all(named[section] == recipe[section] for section in DECIDES):
            return True
    except (DataError, KeyError):
        pass
    return record["key"] == align_key(run)


def _is_own_score(run: Run, arm: str, record: dict[str, Any]) -> bool:
    """By the key; a model that is gone or damaged cannot tell, and its scores stand."""
    try:
        return record["key"] == run.scores_key(arm)
    except DataError:
        return arm == "result"
