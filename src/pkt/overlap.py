"""What a run's splits share with test sets, in the run folder: `contamination.json`.

Not for nano tasks: their splits are disjoint by construction (`nano/world.py`), and no benchmark is in them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pkt.errors import PktError
from pkt.files import write_json
from pkt.models.checkpoint import file_digest, is_nano
from pkt.stages import key_of
from pkt.tasks.base import SPLITS, Task, fingerprint
from pkt.tasks.contamination import RUN, Overlap, TestSet, numbered, overlaps, split_of, test_set_of
from pkt.tasks.folder import Folder, found_file, home, test_file
from pkt.tasks.formats import FORMATS
from pkt.tasks.jsonl import read_jsonl
from pkt.tasks.reading import examples_of

if TYPE_CHECKING:
    from pkt.run import Run

log = logging.getLogger(__name__)

STAGE, FILE = "overlap", "contamination.json"
FEW_SHOT = "mmlu few-shot examples"
VERSION = 1
"""Of what is compared: raise it when `contamination` changes."""
HOW = {
    "exact": "equal but for white space at the ends and \\r\\n for \\n",
    "normalised": "NFKD, lower case, a-z and 0-9 alone",
    f"{RUN}_word_runs": f"rows whose question shares {RUN} words in a row with a test item's",
}


def record_overlap(run: Run) -> None:
    """Write `contamination.json`, unless it is there for the same data; nothing for a nano task."""
    if is_nano(run.task.name):
        run.stages.drop(STAGE)
        (run.folder / FILE).unlink(missing_ok=True)
        return

    def make() -> list[Path]:
        found = contamination(run.task, run.recipe.task.data)
        write_json(run.folder / FILE, found)
        log.info("%s", sentence(found))
        return [run.folder / FILE]

    run.stages.run(STAGE, key_of(STAGE, VERSION, *_inputs(run)), make)


def _inputs(run: Run) -> list[Any]:
    """What decides the file."""
    splits = {name: fingerprint(examples) for name, examples in _splits(run.task, run.recipe.task.data)}
    if run.recipe.task.data is None:
        return [run.task.name, run.task.origin, splits, fingerprint(run.task.split("test"))]
    folder = Path(run.recipe.task.data)
    files = sorted((folder / "test").glob("*/*.jsonl*"))
    return [run.task.name, splits, {str(path.relative_to(folder)): file_digest(path) for path in files}]


def contamination(task: Task, data: str | Path | None) -> dict[str, Any]:
    """Every split of a task that there is, against its own test set and all others in the data folder.

    Args:
        data: the folder; None means the hub, and the task's own test set alone.
    """
    splits = [split_of(name, task.format.name, examples) for name, examples in _splits(task, data)]
    all_tasks = found_file(Path(data) / "test" / "mbpp", "mbpp.jsonl") if data and home(task.name) == "mbpp" else None
    if all_tasks is not None:
        known = test_set_of("mbpp", "mbpp", examples_of(read_jsonl(all_tasks), FORMATS["mbpp"].from_test, []))
        splits = [numbered(split, known) for split in splits]
    found: list[Overlap] = []
    unread = {}
    for name, test in _test_sets(task, data):
        if isinstance(test, TestSet):
            found += overlaps(splits, test)
        else:
            unread[name] = test
            log.warning("overlap with %s is not known: %s", name, test)
    return {
        "format": "contamination 1",
        "task": task.name,
        "data": task.origin,
        "compared": HOW,
        "overlaps": [overlap.record() for overlap in found],
        "unread": unread,
        "dropped": [{"where": row.where, "id": row.id, "reason": row.reason} for row in task.dropped],
    }


def _splits(task: Task, data: str | Path | None) -> Iterator[tuple[str, Any]]:
    """Name and examples of the splits that there are, but test."""
    for name in SPLITS[:-1]:
        if data is None or Folder(task.format, Path(data), []).has(name):
            try:
                yield name, task.split(name)
            except PktError:
                if data is not None:  # a file that is there must be whole
                    raise


def _test_sets(task: Task, data: str | Path | None) -> Iterator[tuple[str, TestSet | str]]:
    """The test sets to compare with, the task's own first; for one that cannot be read, why."""
    own = task.format.name
    yield own, test_set_of(own, own, task.split("test"))
    if data is None:
        return
    folder = Path(data)
    for name in sorted(FORMATS, key=lambda n: (home(n) != home(own), n)):
        if name != own and test_file(folder, name) is not None:
            yield name, _read(name, folder)
    few_shot = found_file(folder / "test" / "mmlu", "dev.jsonl")
    if few_shot is not None:
        yield FEW_SHOT, _few_shot(few_shot)


def _read(name: str, folder: Path) -> TestSet | str:
    try:
        return test_set_of(name, name, Folder(FORMATS[name], folder, []).split("test"))
    except PktError as e:
        return str(e)


def _few_shot(path: Path) -> TestSet | str:
    """MMLU's dev rows, which stand in few-shot prompts."""
    try:
        return test_set_of(FEW_SHOT, "mmlu", examples_of(read_jsonl(path), FORMATS["mmlu"].from_test, []))
    except PktError as e:
        return str(e)


def sentence(found: dict[str, Any]) -> str:
    """One line: which test items stand in which splits."""
    names = list(dict.fromkeys(row["test"] for row in found["overlaps"]))
    hits = warnings_of(found)
    return f"overlap of {found['task']} with test sets ({', '.join(names)}): {'; '.join(hits) or 'none'}"


def warnings_of(found: dict[str, Any]) -> list[str]:
    """What a reader of scores should know: per test set the rows that are its items, and rows that were left out."""
    said = []
    for test in dict.fromkeys(row["test"] for row in found["overlaps"]):
        rows = [row for row in found["overlaps"] if row["test"] == test and row["normalised"]]
        if rows:
            counts = ", ".join(f"{row['split']} {row['normalised']} of {row['num_rows']}" for row in rows)
            said.append(f"rows that are items of {test}: {counts}")
    said += [f"{name} could not be compared with" for name in found["unread"]]
    return said


def folder_warnings(folder: Path) -> list[str]:
    """The same from a run folder, with the rows that were left out; nothing where it has no `contamination.json`."""
    path = folder / FILE
    if not path.is_file():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    said = [f"{line}; {FILE} lists them" for line in warnings_of(found)]
    if found["dropped"]:
        ids = [row["id"] for row in found["dropped"]]
        more = f" and {len(ids) - 5} more" if len(ids) > 5 else ""
        said.append(f"rows left out of the data: {', '.join(ids[:5])}{more}; {FILE} says why")
    return said
