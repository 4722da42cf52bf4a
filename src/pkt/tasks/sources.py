"""Where a task's examples come from: the embedded nano world, a folder, or the hub.

`folder` and `hub` say what they read. Prompts without labels of the nano world ask about its new units.
"""

from __future__ import annotations

import random
from pathlib import Path

from pkt.errors import ConfigError, DataError
from pkt.registry import nearest
from pkt.tasks.base import UNLABELLED, Example, Task
from pkt.tasks.folder import Folder, home
from pkt.tasks.format import Format
from pkt.tasks.formats import FORMATS
from pkt.tasks.reading import Dropped
from pkt.tasks.shots import worked_in

NANO_TOKENS = 32
"""Nano answers are at most this long."""

TASKS = {
    "nano/mmlu": "people's cities, jobs and pets, 16 answers ranked by likelihood (embedded)",
    "nano/gsm8k": "what some invented goods cost together (embedded)",
    "nano/humaneval": "a function for an invented verb, from its docstring (embedded)",
    "nano/mbpp": "a function for an invented verb, from its description (embedded)",
    "mmlu": "57 subjects, four choices (hub, or a folder with --set task.data=DIR)",
    "gsm8k": "grade-school word problems (hub or folder)",
    "humaneval": "Python functions from docstrings (folder; from the hub the test split alone)",
    "mbpp": "Python functions from descriptions, the 500 test tasks (hub or folder)",
    "mbpp_plus": "278 tasks of MBPP+, with more tests; MBPP's splits (hub or folder)",
    "math": "competition problems, the answer in a box (hub or folder)",
}


def task(name: str, data: str | Path | None = None) -> Task:
    """A task by name.

    Args:
        data: folder for a bare name; None means the hub.

    Raises:
        ConfigError: no such task, or data for an embedded one.
        DataError: no such folder.
    """
    if name not in TASKS:
        raise ConfigError(f"unknown task {name!r}; {nearest(name, list(TASKS))}")
    if name.startswith("nano/"):
        if data is not None:
            raise ConfigError(
                f"task {name} is embedded; leave task.data out, or use {name.removeprefix('nano/')!r} for your data"
            )
        form = FORMATS[name.removeprefix("nano/")].one_style(max_new_tokens=NANO_TOKENS)
        return Task(name, form, lambda split: _nano(form, split), "nano", _nano_wordings)
    form = FORMATS[name]
    dropped: list[Dropped] = []
    if data is None:
        from pkt.tasks.hub import HUB, Hub

        hub = Hub(form, dropped)
        return Task(name, form, hub.split, f"hub {HUB[name].path}", worked=hub.worked, dropped=dropped)
    folder = Path(data).expanduser()
    if not folder.is_dir():
        raise DataError(f"task.data: no folder {folder}; expected splits/{home(name)}/ and test/{home(name)}/ in it")
    return Task(
        name,
        form,
        Folder(form, folder, dropped).split,
        str(folder),
        worked=lambda: worked_in(form, folder),
        dropped=dropped,
    )


def _nano(form: Format, split: str) -> list[Example]:
    from pkt.nano import world

    if split == UNLABELLED:
        return _nano_unlabelled(form)
    return [form.from_messages(row, row["id"]) for row in world.splits(form.name)[split]]


def _nano_wordings(example: Example) -> list[str]:
    """The wordings of a nano question, of any task, without those that stand in a split of its task."""
    from pkt.nano import world

    for task in world.TASKS:
        if example.unit not in world.table(task).entries:
            continue
        asked = [world.wordings(task, example.unit, "", skill=skill) for skill in (False, True)]
        for rows in (rows for groups in asked for rows in groups):
            texts = [row["messages"][0]["content"] for row in rows]
            if example.prompt in texts:
                held = world.heldout_prompts(task)
                return [text for text in texts if text not in held]
    return []


def _nano_unlabelled(form: Format) -> list[Example]:
    """Every prompt about the units of group `new` that stands in no split, in a fixed random order, without its answer."""
    from pkt.nano import world

    asked = world.training_rows(form.name, ("new",), skill=False)
    rows = [row for of_unit in asked for of_question in of_unit for row in of_question]
    random.Random(f"{world.SEED} {form.name} {UNLABELLED}").shuffle(rows)
    return [
        form.from_prompt(
            {
                "id": f"nano/{form.name}/{UNLABELLED}/{i}",
                "unit": row["unit"],
                "tier": "",
                "messages": row["messages"][:1],
            },
            row["unit"],
        )
        for i, row in enumerate(rows)
    ]
