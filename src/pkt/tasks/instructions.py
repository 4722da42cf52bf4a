"""HumanEvalPack's instructions: what a user would ask for, in the place of a bare HumanEval prompt.

They lie beside the test set, `test/humaneval/humanevalpack_python.jsonl` of a data folder, or in a data set of their own on the hub.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from pkt.errors import DataError
from pkt.tasks.base import Example
from pkt.tasks.format import Format, Row, field
from pkt.tasks.jsonl import read_jsonl

log = logging.getLogger(__name__)

NAME = "humanevalpack_python.jsonl"


def reader_in(form: Format, folder: Path) -> Callable[[Row, str], Example]:
    """What reads the test rows of a data folder."""
    if form.name != "humaneval":
        return form.from_test
    path = folder / "test" / form.name / NAME
    if not path.is_file():
        return _without(form, f"no {path}")
    return _with(form, ((where, row) for where, row in read_jsonl(path)))


def reader_with(form: Format, rows: Callable[[], Iterable[tuple[str, Row]]]) -> Callable[[Row, str], Example]:
    """What reads the test rows of the hub's data set.

    Args:
        rows: reads the instructions' own data set; DataError where that cannot be read.
    """
    if form.name != "humaneval":
        return form.from_test
    try:
        return _with(form, rows())
    except DataError as e:
        return _without(form, str(e))


def _with(form: Format, rows: Iterable[tuple[str, Row]]) -> Callable[[Row, str], Example]:
    """Reads a row together with the instruction of the same number.

    Raises:
        DataError: a row is wrong, or a task has no instruction.
    """
    known = {_number(row, where): field(row, "instruction", str, where) for where, row in rows}

    def read(row: Row, where: str) -> Example:
        number = _number(row, where)
        if number not in known:
            raise DataError(f"{where}: no instruction for task {number} in {NAME}; complete that file, or remove it")
        return form.from_test({**row, "instruction": known[number]}, where)

    return read


def _number(row: Row, where: str) -> str:
    """`0` of `HumanEval/0` and of `Python/0`."""
    return str(field(row, "task_id", str, where)).rpartition("/")[2]


def _without(form: Format, why: str) -> Callable[[Row, str], Example]:
    log.warning(
        "%s: %s: tasks are asked as `Complete the following python function`, which scores lower than HumanEvalPack's instructions",
        *(form.name, why),
    )
    return form.from_test
