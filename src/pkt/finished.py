"""Which finished stages of a run folder are those of its recipe.

What another recipe left stays until it is made anew, but stands for nothing: no later stage reads it, no summary shows it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pkt.errors import DataError

if TYPE_CHECKING:
    from pkt.run import Run

log = logging.getLogger(__name__)

WRITTEN = ("summary.json", "report.html")
"""What sums up the stages."""


def is_own(run: Run, stage: str) -> bool:
    """Whether `align`, `inject` or `evaluate ARM` was finished with the recipe, models and data that the run has now."""
    records = run.stages.records()
    if stage not in records:
        return False
    if stage == "align":
        return records[stage]["key"] == run.align_key()
    if stage == "inject":
        delta = records.get("align", {"files": {}})["files"].get("delta.safetensors")
        return is_own(run, "align") and records[stage]["key"] == run.inject_key(delta)
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
