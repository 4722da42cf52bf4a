"""The stages of a run that fill a memo, location and preparation: several runs may share the memo, and then the stages."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pkt.memo_costs import watched
from pkt.stages import SHARED, Stages, key_of

if TYPE_CHECKING:
    from pkt.run import Run
    from pkt.tasks.base import Task


def locate(run: Run, stage: str, task: Task) -> None:
    """Attribution scores of both models on the task's examples to locate with."""
    assert run.method.locate is not None
    fill = partial(run.method.locate, run.source, run.target, task, run.options, run.style)
    _fill(run, stage, _locate_key(run, stage, task), fill)


def prepare(run: Run) -> None:
    """What runs of the method share beside scores: a source's answers. Nothing where it has none."""
    decides = run.method.preparation_key(run.task, run.options)
    if decides is None:
        return
    assert run.method.prepare is not None
    fill = partial(run.method.prepare, run.source, run.target, run.task, run.options, run.style)
    _fill(run, "prepare", _prepare_key(run, decides), fill)


def keys(run: Run) -> dict[str, str]:
    """The keys of the stages that the run has, which runs with one memo share."""
    found = {} if run.method.locate is None else {"locate": _locate_key(run, "locate", run.task)}
    decides = run.method.preparation_key(run.task, run.options)
    return found if decides is None else {**found, "prepare": _prepare_key(run, decides)}


def drop_others(run: Run) -> None:
    """Forget such stages of another method that had the folder before."""
    if done := {*SHARED} & run.stages.records().keys():
        for name in done - keys(run).keys():
            run.stages.drop(name)


def files(run: Run) -> list[Path]:
    """What these stages left in the folder's memo, as far as it is there."""
    records = run.stages.records()
    found = {file for name, record in records.items() if name.split()[0] in SHARED for file in record["files"]}
    return sorted(path for path in (run.folder / file for file in found) if path.is_file())


def shared(run: Run, stage: str, key: str) -> Stages:
    """The folder beside a shared memo that says what a stage took, once for all runs that share it."""
    return Stages(run.memo.parent / f"{stage}-{key[:16]}")


def _fill(run: Run, stage: str, key: str, fill: Callable[[], object]) -> None:
    """Run a stage; where the memo is shared the first run says what it took."""

    def make() -> list[Path]:
        with watched() as memo:
            fill()
        return [] if run.is_shared else sorted(memo.files)  # those of a shared one verify themselves

    if run.is_shared:
        run.stages.adopt(stage, key, shared(run, stage, key))
    run.stages.run(stage, key, make, count=True)


def _locate_key(run: Run, stage: str, task: Task) -> str:
    return key_of(stage, run.inputs(), run.method.location_key(task, run.options), run.recipe.dtype)


def _prepare_key(run: Run, decides: list[Any]) -> str:
    return key_of("prepare", [*run.inputs(*run.method.reads(run.options)), decides, run.recipe.dtype])
