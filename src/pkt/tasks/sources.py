"""Where a task's examples come from: the embedded nano world, a folder, or the hub.

A folder has the layout `splits/TASK/{extract,align,train}.jsonl` and `test/TASK/test.jsonl` (or `.jsonl.gz`). It has no
valid split of its own: the last tenth of `train` is `valid`, and no part of `train`. Prompts without labels may stand in
`splits/TASK/unlabelled.jsonl`, as `messages` of one user. Those of the nano world ask about its new units. The public training data on the hub
is dealt in a fixed random order: extract 20, align 80, valid 100 and train up to 1,000 rows, none of which has the prompt of
a test row or of another.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pkt.errors import ConfigError, DataError
from pkt.registry import nearest
from pkt.tasks.base import UNLABELLED, Example, Task
from pkt.tasks.format import Format
from pkt.tasks.formats import FORMATS
from pkt.tasks.instructions import reader_in, reader_on_hub
from pkt.tasks.jsonl import read_jsonl
from pkt.tasks.mmlu import LETTERS
from pkt.tasks.shots import worked_in, worked_on_hub

log = logging.getLogger(__name__)

NANO_TOKENS = 32
"""Nano answers are at most this long."""
DEALT = {"extract": 20, "align": 80, "valid": 100, "train": 1000}
HUB = {
    "gsm8k": ("openai/gsm8k", "main", "train", "test"),
    "mmlu": ("cais/mmlu", "all", "dev+validation", "test"),
    "humaneval": ("openai/openai_humaneval", None, None, "test"),
    "mbpp": ("google-research-datasets/mbpp", "full", "train", "test"),
}
"""Data set, configuration, split to deal from, test split."""

TASKS = {
    "nano/mmlu": "people's cities, jobs and pets, 16 answers ranked by likelihood (embedded)",
    "nano/gsm8k": "what some invented goods cost together (embedded)",
    "nano/humaneval": "a function for an invented verb, from its docstring (embedded)",
    "nano/mbpp": "a function for an invented verb, from its description (embedded)",
    "mmlu": "57 subjects, four choices (hub, or a folder with --set task.data=DIR)",
    "gsm8k": "grade-school word problems (hub or folder)",
    "humaneval": "Python functions from docstrings (hub or folder; generated code is not graded yet)",
    "mbpp": "Python functions from descriptions (hub or folder; generated code is not graded yet)",
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
    if data is None:
        dealt = _Dealt(form)
        return Task(name, form, dealt.split, f"hub {HUB[name][0]}", worked=dealt.worked)
    folder = Path(data).expanduser()
    if not folder.is_dir():
        raise DataError(f"task.data: no folder {folder}; expected splits/{name}/ and test/{name}/ in it")
    return Task(
        name,
        form,
        lambda split: _folder(form, folder, split),
        str(folder),
        worked=lambda: worked_in(form, folder),
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


def _folder(form: Format, folder: Path, split: str) -> list[Example]:
    if split == "test":
        place = folder / "test" / form.name
        path = next((p for p in (place / "test.jsonl", place / "test.jsonl.gz") if p.is_file()), place / "test.jsonl")
        return _examples(path, reader_in(form, folder))
    place = folder / "splits" / form.name
    if split == UNLABELLED:
        path = place / f"{UNLABELLED}.jsonl"
        if not path.is_file():
            raise DataError(
                f"{form.name}: no unlabelled prompts; put them into {path}, one user message a line, or set method.unlabelled=0"
            )
        return _examples(path, form.from_prompt)
    if split not in ("train", "valid") or ((place / f"{split}.jsonl").is_file() and split == "valid"):
        return _examples(place / f"{split}.jsonl", form.from_messages)
    rows = _examples(place / "train.jsonl", form.from_messages)
    if (place / "valid.jsonl").is_file():
        return rows
    cut = len(rows) - len(rows) // 10
    return rows[:cut] if split == "train" else rows[cut:]


def _examples(path: Path, read: Callable[[dict[str, Any], str], Example]) -> list[Example]:
    rows = read_jsonl(path)
    if not rows:
        raise DataError(f"{path}: empty file; expected one JSON object per line")
    found = []
    for where, row in rows:
        short = f"{path.parent.name}/{where.rsplit('/', 1)[-1]}"
        try:
            example = read(row, short)
        except DataError as e:
            raise DataError(str(e).replace(short, where, 1)) from None
        if not _is_corrupt(example, where):
            found.append(example)
    return found


def _is_corrupt(example: Example, where: str) -> bool:
    """Whether a choice of a multiple-choice row reads `nan`, a missing value; such a row is dropped with a warning."""
    corrupt = example.choices == LETTERS and any(f"\n{letter}. nan\n" in example.prompt for letter in LETTERS)
    if corrupt:
        log.warning("%s (%s) dropped: a choice reads `nan`, lost when the data was made", where, example.id)
    return corrupt


class _Dealt:
    """The splits of a public data set: test as published, the others dealt from its training data."""

    def __init__(self, form: Format) -> None:
        self.form = form

    def split(self, name: str) -> list[Example]:
        path, config, train, test = HUB[self.form.name]
        if name == "test":
            return self._read(test)
        if name == UNLABELLED:
            raise DataError(
                f"{self.form.name}: {path} has no unlabelled prompts; give a folder with --set task.data=DIR, or set method.unlabelled=0"
            )
        if train is None:
            raise DataError(
                f"{self.form.name}: {path} has a test split only and no {name}; give a folder with --set task.data=DIR"
            )
        taken = {e.prompt for e in self._read(test)}
        rows = list({e.prompt: e for e in self._read(train) if e.prompt not in taken}.values())
        random.Random(f"{path} {config}").shuffle(rows)
        start = 0
        for split, count in DEALT.items():
            if split == name:
                return rows[start : start + count]
            start += count
        raise AssertionError(name)

    def worked(self) -> Sequence[Example]:
        return worked_on_hub(self.form, lambda: self._read("dev"))

    def _read(self, split: str) -> list[Example]:
        import datasets

        path, config, *_ = HUB[self.form.name]
        try:
            rows = datasets.load_dataset(path, config, split=split)
        except (OSError, ValueError, RuntimeError) as e:
            raise DataError(
                f"{self.form.name}: data set {path} could not be read from the hub ({type(e).__name__}); "
                f"give a folder with --set task.data=DIR"
            ) from e
        read = reader_on_hub(self.form)
        examples = [read(dict(row), f"{path}/{split}/{i}") for i, row in enumerate(rows)]
        return [e for e in examples if not _is_corrupt(e, e.id)]
