"""A task's examples from a folder: `splits/TASK/{extract,align,train}.jsonl` and `test/TASK/test.jsonl`, gzipped or not.

- `splits/TASK/valid.jsonl` may be missing: then the last tenth of `train` is `valid`, and no part of `train`.
- `splits/TASK/unlabelled.jsonl` may hold prompts without labels, as `messages` of one user.
- MBPP's test set is cut from `test/mbpp/mbpp.jsonl`, all 974 tasks, where there is no `test.jsonl`.
- `mbpp_plus` has MBPP's splits, and the rows 100 to 377 of `test/mbpp/mbpp_plus.jsonl`, as Open-Instruct's protocol has them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pkt.errors import DataError
from pkt.tasks.base import UNLABELLED, Example
from pkt.tasks.format import Format, Row, field
from pkt.tasks.instructions import reader_in
from pkt.tasks.jsonl import read_jsonl
from pkt.tasks.reading import Dropped, check_ids, examples_of

SHARED_SPLITS = {"mbpp_plus": "mbpp"}
"""Tasks that have the splits, and the folders, of another."""
TEST_FILES = {"mbpp": ("test.jsonl", "mbpp.jsonl"), "mbpp_plus": ("mbpp_plus.jsonl",)}
MBPP_TEST = range(11, 511)
"""Task ids of MBPP's test set."""
PLUS_ROWS, PLUS_TEST = 378, slice(100, 378)
"""Rows of MBPP+ (v0.2.0), and those that are scored: the first 100 are held out."""

Rows = list[tuple[str, Row]]


def home(name: str) -> str:
    """Name of the folders that a task's files are in."""
    return SHARED_SPLITS.get(name, name)


def found_file(folder: Path, *names: str) -> Path | None:
    """The first of the names, or of the names with `.gz`, that is a file."""
    paths = [folder / f"{name}{end}" for name in names for end in ("", ".gz")]
    return next((path for path in paths if path.is_file()), None)


def test_file(folder: Path, name: str) -> Path | None:
    """The file with a task's test set, if the data folder has one."""
    return found_file(folder / "test" / home(name), *TEST_FILES.get(name, ("test.jsonl",)))


def test_rows(name: str, rows: Rows, file: str) -> Rows:
    """The rows of a file that are the task's test set.

    Args:
        file: name of the file, without `.gz`.

    Raises:
        DataError: the file does not hold the whole set.
    """
    if name == "mbpp" and file == "mbpp.jsonl":
        chosen = [(where, row) for where, row in rows if field(row, "task_id", int, where) in MBPP_TEST]
        if len(chosen) != len(MBPP_TEST):
            raise DataError(f"{file}: has {len(chosen)} of MBPP's test tasks, expected the 500 with ids 11 to 510")
        return chosen
    if name == "mbpp_plus":
        if len(rows) != PLUS_ROWS:
            raise DataError(f"{file}: has {len(rows)} rows, expected the {PLUS_ROWS} of MBPP+ v0.2.0")
        return rows[PLUS_TEST]
    return rows


class Folder:
    """One task's part of a data folder.

    Args:
        dropped: takes down what is left out.
    """

    def __init__(self, form: Format, folder: Path, dropped: list[Dropped]) -> None:
        self.form, self.folder, self.dropped = form, folder, dropped
        self.splits = folder / "splits" / home(form.name)

    def split(self, name: str) -> list[Example]:
        """The examples of a split.

        Raises:
            DataError: no such file, or a row that is wrong, with its line.
        """
        if name == "test":
            return self._test()
        if name == UNLABELLED:
            path = self.path(name)
            if path is None:
                raise DataError(
                    f"{self.form.name}: no unlabelled prompts; put them into {self.splits / f'{name}.jsonl'}, one user message a line, "
                    f"or set method.unlabelled=0"
                )
            return self._read(path, self.form.from_prompt)
        path = self.path(name)
        if path is not None and (name != "train" or self.path("valid") is not None):
            return self._read(path, self.form.from_messages)
        if name not in ("train", "valid"):
            return self._read(self.splits / f"{name}.jsonl", self.form.from_messages)
        rows = self._read(self.path("train") or self.splits / "train.jsonl", self.form.from_messages)
        cut = len(rows) - len(rows) // 10
        return rows[:cut] if name == "train" else rows[cut:]

    def path(self, name: str) -> Path | None:
        """The file of a split, if there is one."""
        return found_file(self.splits, f"{name}.jsonl")

    def has(self, name: str) -> bool:
        """Whether the folder has a split."""
        return self.path("train" if name == "valid" else name) is not None or self.path(name) is not None

    def _test(self) -> list[Example]:
        names = TEST_FILES.get(self.form.name, ("test.jsonl",))
        path = test_file(self.folder, self.form.name)
        path = path or self.folder / "test" / home(self.form.name) / names[0]
        found = self._read(path, reader_in(self.form, self.folder), test=True)
        check_ids(found, str(path))
        return found

    def _read(self, path: Path, read: Callable[[Row, str], Example], *, test: bool = False) -> list[Example]:
        rows = read_jsonl(path)
        if not rows:
            raise DataError(f"{path}: empty file; expected one JSON object per line")
        if test:
            try:
                rows = test_rows(self.form.name, rows, path.name.removesuffix(".gz"))
            except DataError as e:
                raise DataError(f"{path.parent}/{e}") from None
        return examples_of(rows, lambda row, where: _example(row, where, read, path), self.dropped)


def _example(row: Row, where: str, read: Callable[[Row, str], Example], path: Path) -> Example:
    """A row's example, whose place, where it has no id, names folder, file and line alone."""
    short = f"{path.parent.name}/{where.rsplit('/', 1)[-1]}"
    try:
        return read(row, short)
    except DataError as e:
        raise DataError(str(e).replace(short, where, 1)) from None
