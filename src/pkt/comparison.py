"""Run folders side by side: what each scored, whether it was transfer, and what it took. Reads files, runs nothing."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pkt.comparison_entry import Entry, entry
from pkt.errors import DataError

FORMAT = "comparison 1"


def compare(folders: Sequence[Path]) -> list[Entry]:
    """One entry per folder, in the order given.

    Raises:
        DataError: a folder is missing, is no run folder, holds no results, is damaged, or is given twice.
    """
    places = [folder.resolve() for folder in folders]
    twice = [folder for folder, number in Counter(places).items() if number > 1]
    if twice:
        raise DataError(f"{twice[0]} is given twice; give it once")
    return distinct([entry(folder) for folder in folders])


def distinct(entries: Sequence[Entry]) -> list[Entry]:
    """Where runs of one setting have one name, what differs in their folders is added to it, and to their series what differs in their options."""

    def setting(one: Entry) -> tuple[str, ...]:
        return one.recipe, one.task, one.source, one.target

    clear = []
    for one in entries:
        namesakes = [e for e in entries if setting(e) == setting(one)]
        if len(namesakes) == 1:
            clear.append(one)
            continue
        common = os.path.commonpath([Path(e.folder).absolute() for e in namesakes])
        apart = os.path.relpath(Path(one.folder).absolute(), common)
        alike = [e for e in namesakes if e.method == one.method]
        words = [one.method] * (len(alike) < len(namesakes))
        words += [f"{k}={v}" for k, v in one.options.items() if any(e.options.get(k, v) != v for e in alike)]
        series = f"{', '.join(words)} ({one.recipe})" if words else one.recipe
        clear.append(replace(one, run=f"{one.recipe} ({apart})", series=series))
    return clear


def as_json(entries: Sequence[Entry]) -> dict[str, Any]:
    """The content of `comparison.json`."""
    return {"format": FORMAT, "runs": [asdict(entry) for entry in entries]}
