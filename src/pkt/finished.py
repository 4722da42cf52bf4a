"""Which finished stages of a run folder are those of its recipe.

What another recipe left stays until it is made anew, but stands for nothing: no later stage reads it, no summary shows it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pkt.errors import DataError
from pkt.stages import key_of

if TYPE_CHECKING:
    from pkt.run import Run

log = logging.getLogger(__name__)

WRITTEN = ("summary.json", "report.html")
"""What sums up the stages."""


def align_key(run: Run) -> str:
    """Hash of all that decides the delta."""
    read = run.inputs(*run.method.reads(run.options))
    return key_of("align", read, run.options.model_dump(), run.recipe.seed, run.recipe.dtype)


def inject_key(run: Run, delta: str | None) -> str:
    """Hash of all that decides the export, of a delta with that digest."""
    return key_of("inject", delta, run.target.digest, run.recipe.export.model_dump())


def is_own(run: Run, stage: str) -> bool:
    """Whether `align`, `inject` or `evaluate ARM` was finished with the recipe, models and data that the run has now."""
    records = run.stages.records()
    if stage not in records:
        return False
    if stage == "align":
        return records[stage]["key"] == align_key(run)
    if stage == "inject":
        delta = records.get("align", {"files": {}})["files"].get("delta.safetensors")
        return is_own(run, "align") and records[stage]["key"] == inject_key(run, delta)
    arm = stage.removeprefix("evaluate ")
    if arm == "result" and not is_own(run, "inject"):
        return False
    try:
        return records[stage]["key"] == run.scores_key(arm)
    except DataError:  # the export is damaged or gone
        return False


def forget_others(run: Run) -> None:
    """Remove what sums up stages of another recipe."""
    made = [name for name in run.stages.records() if name in ("align", "inject") or name.startswith("evaluate ")]
    others = [name for name in made if not is_own(run, name)]
    if others and any((run.folder / name).is_file() for name in WRITTEN):
        log.warning("%s: %s of another recipe; the summary is removed", run.folder, ", ".join(others))
        for name in WRITTEN:
            (run.folder / name).unlink(missing_ok=True)
