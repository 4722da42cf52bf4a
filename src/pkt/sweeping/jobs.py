"""What one process does for a sweep: locate, prepare or score what several runs share, then run or certify a point.

A job that fails gives its message; the others go on.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pkt import memo_stages
from pkt.config import Recipe, validate
from pkt.environment import code
from pkt.errors import DataError, one_line
from pkt.evaluation.guard import text_digest
from pkt.files import locked, read_record, write_json
from pkt.jobs import VALIDATION_BATCH
from pkt.machine import Machine
from pkt.models.checkpoint import file_digest
from pkt.run import Run
from pkt.stages import key_of
from pkt.tasks.base import fingerprint

log = logging.getLogger(__name__)

SHARED = "shared"
"""Folder of what the runs of a sweep share; no point has this name, for it has no `=` and is refused as a recipe's."""
VALID = "valid.json"
"""A run's loss on the valid split, in its folder."""
DONE = "sweep-run.json"
"""Says that a run of a sweep is finished."""


@dataclass(frozen=True)
class Job:
    """One thing to do for the run of a recipe in a folder."""

    kind: str
    """`locate`, `prepare`, `target` or `source` (to score), `run` or `certify`."""
    recipe: str
    """As JSON."""
    folder: str
    label: str
    """For messages."""
    key: str = ""
    """Of what is shared."""


class Worker:
    """The jobs of one process.

    Args:
        folder: of the sweep.
    """

    def __init__(self, folder: Path, machine: Machine) -> None:
        self.folder, self.machine = folder, machine

    def work(self, job: Job) -> str | None:
        """Do a job; what was wrong, if something was."""
        kinds: dict[str, Callable[[Job], None]] = {"run": self._run, "certify": self._certify}
        try:
            kinds.get(job.kind, self._share)(job)
        except Exception as e:  # a grid of hours must not end with one setting, whatever went wrong in it
            log.debug("traceback", exc_info=True)
            return one_line(e)
        return None

    def _recipe(self, job: Job) -> Recipe:
        return validate(Recipe, json.loads(job.recipe), job.label)

    def _share(self, job: Job) -> None:
        """Make what several runs read, in the sweep's memo; its costs stand in a folder of its own."""
        run = Run(self._recipe(job), Path(job.folder), self.machine, memo_of(self.folder))
        if job.kind in ("target", "source"):
            run.scored(job.kind, run.target if job.kind == "target" else run.source, job.key)
            return
        run.stages = memo_stages.shared(run, job.kind, job.key)
        run.locate() if job.kind == "locate" else run.prepare()

    def _run(self, job: Job) -> None:
        from pkt.execute import execute

        recipe, folder, memo = self._recipe(job), Path(job.folder), memo_of(self.folder)
        if is_finished(Run(recipe, folder, self.machine, memo)):
            return
        run = execute(recipe, folder, self.machine, memo)
        with locked(folder):
            validation_loss(run)
            write_json(folder / DONE, {"key": _done_key(run)})

    def _certify(self, job: Job) -> None:
        from pkt.evidence import certify

        certify(self._recipe(job), Path(job.folder), replace(self.machine, workers=1))


def memo_of(folder: Path) -> Path:
    """What the runs of a sweep share: located scores, answers, scores of target and source."""
    return folder / SHARED / "neurons"


def is_finished(run: Run) -> bool:
    """Whether a run of a sweep is done: of the same recipe, models, data and code, and all that it wrote is as it was."""
    folder = run.folder
    if read_record(folder / DONE).get("key") != _done_key(run):
        return False
    whole = all((folder / name).is_file() for name in ("summary.json", "report.html", VALID, "env.json", "recipe.yaml"))
    try:
        records = run.stages.records()
        contents = {f"evaluate {arm}": run.scores.digest(arm) for arm in run.recipe.evaluate.arms}
    except (DataError, ValueError):
        return False
    scored = all(records.get(name, {}).get("content") == content for name, content in contents.items())
    return whole and scored and not any(run.stages.damaged(name) for name in records)


def _done_key(run: Run) -> str:
    """Hash of all that decides what a run folder holds."""
    data = [*run.inputs(*run.method.reads(run.options)), *run.evaluation(), text_digest(run.guard_text())]
    valid = fingerprint(valid_split(run))
    return key_of("run", run.recipe.model_dump(mode="json"), data, valid, code()["sources"])


def validation_loss(run: Run) -> float | None:
    """The target's loss on the valid split's responses with the run's delta, in nats per token; kept in `valid.json`.

    Returns: None where the task has no valid split, or the loss is not finite.
    """
    from pkt.inject.apply import injected
    from pkt.inject.delta import Delta
    from pkt.tasks.losses import encode_all, mean_loss

    path, delta_path = run.folder / VALID, run.folder / "delta.safetensors"
    examples = valid_split(run)
    key = key_of(
        "valid", file_digest(delta_path), *run.target.identity, run.recipe.dtype, run.style, fingerprint(examples)
    )
    known = read_record(path)
    if known.get("key") == key:
        loss: float | None = known.get("loss")
        return loss
    found = None
    if examples:
        encoded = encode_all(examples, run.style, run.target, loss_on_prompt=False)
        with run.target.loaded() as model, injected(model, Delta.load(delta_path)):
            found = mean_loss(model, run.target, encoded, VALIDATION_BATCH)
    found = found if found is not None and math.isfinite(found) else None
    write_json(path, {"key": key, "loss": found, "examples": len(examples)})
    return found


def valid_split(run: Run) -> list[Any]:
    """The examples to choose settings on; none where the data has none, or where the method or the test asks them too."""
    try:
        found = run.task.split("valid")
        run.task.check_disjoint(*dict.fromkeys((*run.method.reads(run.options), "valid", "test")))
    except DataError:
        return []
    return found
