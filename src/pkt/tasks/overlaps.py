"""The report `contamination.json`: every split of a task against its own test set and all others at hand."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pkt.errors import PktError
from pkt.tasks.base import Example
from pkt.tasks.contamination import RUN, Overlap, Split, TestSet, numbered, overlaps, split_of, test_set_of
from pkt.tasks.folder import Folder, found_file, home, test_file
from pkt.tasks.formats import FORMATS
from pkt.tasks.jsonl import read_jsonl
from pkt.tasks.reading import Dropped, examples_of

log = logging.getLogger(__name__)

FEW_SHOT = "mmlu few-shot examples"
HOW = {
    "exact": "equal but for white space at the ends and \\r\\n for \\n",
    "normalised": "NFKD, lower case, a-z and 0-9 alone",
    f"{RUN}_word_runs": f"rows whose question shares {RUN} words in a row with a test item's",
}


def report(
    name: str,
    splits: Mapping[str, Sequence[Example]],
    tests: Mapping[str, Sequence[Example]],
    folder: Path | None,
    *,
    origin: str,
    dropped: Sequence[Dropped],
) -> dict[str, Any]:
    """What of a task's splits stands in test sets.

    Args:
        name: the task.
        tests: test sets at hand, the task's own first; the others of `folder` are read.
        folder: a data folder; None means that there is none.
        dropped: rows that were left out.
    """
    rows = [split_of(split, name, examples) for split, examples in splits.items()]
    if folder is not None:
        rows = _with_task_ids(rows, name, folder)
    found: list[Overlap] = []
    unread = {}
    for test, items in {**tests, **_others(name, tests, folder)}.items():
        if isinstance(items, str):
            unread[test] = items
            log.warning("overlap with %s is not known: %s", test, items)
        else:
            found += overlaps(rows, test_set_of(test, test.split(" ")[0], items))
    return {
        "format": "contamination 1",
        "task": name,
        "data": origin,
        "compared": HOW,
        "overlaps": [overlap.record() for overlap in found],
        "unread": unread,
        "dropped": [asdict(row) for row in dropped],
    }


def _with_task_ids(rows: list[Split], name: str, folder: Path) -> list[Split]:
    """MBPP's splits with the task ids that their rows have in `mbpp.jsonl`, where that is at hand."""
    path = found_file(folder / "test" / "mbpp", "mbpp.jsonl") if home(name) == "mbpp" else None
    known = _read("mbpp", path) if path is not None else ""
    if isinstance(known, str):
        return rows
    tasks: TestSet = test_set_of("mbpp", "mbpp", known)
    return [numbered(split, tasks) for split in rows]


def _others(
    name: str, at_hand: Mapping[str, Sequence[Example]], folder: Path | None
) -> dict[str, Sequence[Example] | str]:
    """The other test sets of a folder, those of the same data first; for one that cannot be read, why."""
    found: dict[str, Sequence[Example] | str] = {}
    if folder is None:
        return found
    for other in sorted(FORMATS, key=lambda n: (home(n) != home(name), n)):
        if other not in at_hand and test_file(folder, other) is not None:
            try:
                found[other] = Folder(FORMATS[other], folder, []).split("test")
            except PktError as e:
                found[other] = str(e)
    few_shot = found_file(folder / "test" / "mmlu", "dev.jsonl")
    if few_shot is not None and FEW_SHOT not in at_hand:
        found[FEW_SHOT] = _read("mmlu", few_shot)
    return found


def _read(name: str, path: Path) -> Sequence[Example] | str:
    """Rows in the form of a test set; else why they cannot be read."""
    try:
        return examples_of(read_jsonl(path), FORMATS[name].from_test, [])
    except PktError as e:
        return str(e)


def sentence(found: Mapping[str, Any]) -> str:
    """One line: which test items stand in which splits."""
    names = list(dict.fromkeys(row["test"] for row in found["overlaps"]))
    return f"overlap of {found['task']} with test sets ({', '.join(names)}): {'; '.join(hits(found)) or 'none'}"


def hits(found: Mapping[str, Any]) -> list[str]:
    """Per test set the rows that are its items, in words; nothing where there is none."""
    said = []
    for test in dict.fromkeys(row["test"] for row in found["overlaps"]):
        rows = [row for row in found["overlaps"] if row["test"] == test and row["normalised"]]
        if rows:
            counts = ", ".join(f"{row['split']} {row['normalised']} of {row['num_rows']}" for row in rows)
            said.append(f"rows that are items of {test}: {counts}")
    return said + [f"{test} could not be compared with" for test in found["unread"]]
