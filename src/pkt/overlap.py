"""What a run's splits share with test sets, in the run folder: `contamination.json`.

Not for nano tasks: their splits are disjoint by construction (`nano/world.py`), and no benchmark is in them.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pkt.errors import DataError
from pkt.files import write_json
from pkt.models.checkpoint import file_digest, is_nano
from pkt.stages import key_of
from pkt.tasks.base import SPLITS, Example, Task, fingerprint
from pkt.tasks.folder import Folder
from pkt.tasks.overlaps import hits, report, sentence

if TYPE_CHECKING:
    from pkt.run import Run

log = logging.getLogger(__name__)

STAGE, FILE = "overlap", "contamination.json"
VERSION = 1
"""Of what is compared: raise it when `tasks/contamination.py` changes."""
NAMED = 5
"""Rows that a warning names; the file names all."""


def record_overlap(run: Run) -> None:
    """Write `contamination.json`, unless it is there for the same data; nothing for a nano task."""
    if is_nano(run.task.name):
        run.stages.drop(STAGE)
        (run.folder / FILE).unlink(missing_ok=True)
        return
    data = run.recipe.task.data
    folder = None if data is None else Path(data)
    splits = splits_of(run.task, folder)
    test = run.task.split("test")

    def make() -> list[Path]:
        name = run.task.format.name
        found = report(name, splits, {name: test}, folder, origin=run.task.origin, dropped=run.task.dropped)
        write_json(run.folder / FILE, found)
        log.info("%s", sentence(found))
        return [run.folder / FILE]

    prints = {name: fingerprint(examples) for name, examples in splits.items()}
    key = key_of(STAGE, VERSION, run.task.name, run.task.origin, prints, fingerprint(test), _tests_of(folder))
    run.stages.run(STAGE, key, make)


def splits_of(task: Task, folder: Path | None) -> dict[str, list[Example]]:
    """The splits of a task that there are, but test."""
    found = {}
    for name in SPLITS[:-1]:
        if folder is not None and not Folder(task.format, folder, []).has(name):
            continue
        try:
            found[name] = task.split(name)
        except DataError:
            if folder is not None:  # a file that is there must be whole; on the hub some tasks have no training data
                raise
    return found


def _tests_of(folder: Path | None) -> dict[str, Any]:
    """Hashes of the files of test sets in a data folder."""
    files = [] if folder is None else sorted((folder / "test").glob("*/*.jsonl*"))
    return {f"{path.parent.name}/{path.name}": file_digest(path) for path in files}


def folder_warnings(folder: Path) -> list[str]:
    """What a reader of a run folder's scores should know of its data; nothing where it has no `contamination.json`.

    Raises:
        DataError: that file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise DataError(f"{path}: damaged; delete it, and `pkt run` makes it anew") from None
    said = [f"{line}; {FILE} lists them" for line in hits(found)]
    if found["dropped"]:
        ids = [row["id"] for row in found["dropped"]]
        more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
        said.append(f"rows left out of the data: {', '.join(ids[:NAMED])}{more}; {FILE} says why")
    return said
