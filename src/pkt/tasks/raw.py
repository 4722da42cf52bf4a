"""Public training and test data as it is published: from the hub, or from files that lie here.

| task | files | what is read |
| --- | --- | --- |
| gsm8k | `train.jsonl`, `test.jsonl` | as in grade-school-math |
| mmlu | `{dev,validation,test}.jsonl`, or folders `{dev,val,test}` of CSV files | original CSV files (letters, no header) and copies with a header and 0-3 |
| mbpp | `mbpp.jsonl`; for MBPP+ `mbpp_plus.jsonl` too | training ids 601-974, validation ids 511-600, test ids 11-510 |
| math | `train.jsonl`, `test.jsonl`, or folders `{train,test}/SUBJECT/N.json` | |

`.gz` may follow any `.jsonl`. One's own rows, with `messages`, take the place of any task's training data.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pkt.errors import DataError
from pkt.models.checkpoint import file_digest
from pkt.tasks.folder import Rows, found_file, home, test_rows
from pkt.tasks.hub import HUB, read_table
from pkt.tasks.jsonl import read_jsonl

TRAINING, VALIDATION = range(601, 975), range(511, 601)
"""MBPP's task ids."""
VALIDATION_NAMES = ("validation.jsonl", "val.jsonl", "valid.jsonl")
FILES = "give raw files with --from PATH"
OWN_DATA = (
    "give rows of your own instruction data with --from FILE, one JSON object with `messages` (user, assistant) a line"
)


@dataclass
class Public:
    """A task's public data, as rows with their places."""

    train: Rows = field(default_factory=list)
    reserve: Rows = field(default_factory=list)
    """Taken where `train` is not enough: MMLU's dev rows, which stand in few-shot prompts."""
    valid: Rows = field(default_factory=list)
    """The first to become the valid split."""
    tests: dict[str, Rows] = field(default_factory=dict)
    """Test sets by task, the task's own first; of MBPP+ with the rows that are not scored."""
    few_shot: Rows = field(default_factory=list)
    sources: list[dict[str, Any]] = field(default_factory=list)
    """Where everything is from, with hashes of files."""

    @property
    def is_own(self) -> bool:
        """Whether the rows have `messages`: somebody's own data."""
        return bool(self.train) and "messages" in self.train[0][1]

    def note(self, what: str, where: Path | str, rows: int) -> None:
        """Put a source down."""
        digest = {"sha256": file_digest(where)} if isinstance(where, Path) and where.is_file() else {}
        self.sources.append(
            {"what": what, "from": where.name if isinstance(where, Path) else where, "rows": rows, **digest}
        )


def read_public(task: str, place: Path | None, test: Path | None) -> Public:
    """A task's public data. Its test set may be missing: then `tests` has none of its name.

    Args:
        place: file or folder; None means the hub.
        test: file of the test set, where it does not lie in `place`.

    Raises:
        DataError: there is nothing to read, or it is wrong.
    """
    found = _hub(task, with_test=test is None) if place is None else _local(task, place)
    if test is not None:
        _add_test(found, task, test)
    return found


def _hub(task: str, *, with_test: bool) -> Public:
    found, tables = Public(), HUB[home(task)]
    if tables.train is None:
        raise DataError(f"{task} has no public training data; {OWN_DATA}")

    def read(what: str, split: str) -> Rows:
        rows = read_table(tables, split, FILES)
        found.note(what, f"hub {tables.path}, split {split}", len(rows))
        return rows

    if task == "mmlu":
        found.train = read("training", "validation")
        found.reserve = found.few_shot = read("few-shot examples", "dev")
    else:
        found.train = read("training", tables.train)
    if home(task) == "mbpp":
        found.valid = read("validation", "validation")
    for name in dict.fromkeys((task, home(task))) if with_test else ():
        found.tests[name] = read_table(HUB[name], HUB[name].test, FILES)
        found.note(f"test of {name}", f"hub {HUB[name].path}, split {HUB[name].test}", len(found.tests[name]))
    return found


def _local(task: str, place: Path) -> Public:
    if not place.exists():
        raise DataError(f"--from {place}: no such file or folder")
    found = Public()
    if place.is_file():
        rows = read_jsonl(place)
        if not rows:
            raise DataError(f"{place}: empty file; expected one JSON object per line")
        if "messages" in rows[0][1]:
            found.train = rows
            found.note("training, own rows", place, len(rows))
            return found
        if task == "humaneval":
            raise DataError(f"{place}: its rows have no `messages`, and humaneval has no training data; {OWN_DATA}")
        return _of_folder(task, found, [place.parent], train=place)
    if task == "humaneval":
        raise DataError(f"--from {place} is a folder, but humaneval has no public training data; {OWN_DATA}")
    places = [p for p in (place, place / "data", place / "test" / home(task)) if p.is_dir()]
    return _of_folder(task, found, places)


def _of_folder(task: str, found: Public, places: list[Path], train: Path | None = None) -> Public:
    """Fill in what the folders hold."""
    if home(task) == "mbpp":
        _mbpp(task, found, train or _jsonl(places, "mbpp.jsonl"), places)
    elif task == "mmlu":
        found.train = _part(found, "training", places, train, VALIDATION_NAMES, "val", "validation")
        found.reserve = found.few_shot = _part(found, "few-shot examples", places, None, ("dev.jsonl",), "dev")
        _keep_test(found, task, _part(found, "test of mmlu", places, None, ("test.jsonl",), "test"))
    else:
        found.train = _part(found, "training", places, train, ("train.jsonl",), "train")
        _keep_test(found, task, _part(found, f"test of {task}", places, None, ("test.jsonl",), "test"))
    if not found.train and not found.reserve:
        raise DataError(
            f"--from {places[0]}: no training data of {task} in it; expected {_expected(task)} (or .gz), or a file with `messages`"
        )
    return found


def _keep_test(found: Public, task: str, rows: Rows) -> None:
    if rows:
        found.tests[task] = rows


def _expected(task: str) -> str:
    return {
        "mmlu": "validation.jsonl and dev.jsonl, or folders val and dev of CSV files",
        "mbpp": "mbpp.jsonl",
        "mbpp_plus": "mbpp.jsonl",
        "math": "train.jsonl, or folders train/SUBJECT of JSON files",
    }.get(task, "train.jsonl")


def _mbpp(task: str, found: Public, path: Path | None, places: list[Path]) -> None:
    if path is None:
        return
    rows = read_jsonl(path)
    by_id = {row.get("task_id"): (where, row) for where, row in rows}
    found.note("all of mbpp", path, len(rows))
    found.train = [by_id[i] for i in TRAINING if i in by_id]
    found.valid = [by_id[i] for i in VALIDATION if i in by_id]
    plus = _jsonl(places, "mbpp_plus.jsonl")
    if plus is not None and task == "mbpp_plus":
        _add_test(found, "mbpp_plus", plus)
    found.tests["mbpp"] = test_rows("mbpp", rows, "mbpp.jsonl")


def _add_test(found: Public, task: str, path: Path) -> None:
    found.tests = {task: whole_test(task, path), **found.tests}
    found.note(f"test of {task}", path, len(found.tests[task]))


def whole_test(task: str, path: Path) -> Rows:
    """The rows of a test file as they are kept: MBPP's 500, but all rows of MBPP+."""
    rows = read_jsonl(path)
    return rows if task == "mbpp_plus" else test_rows(task, rows, path.name.removesuffix(".gz"))


def _jsonl(places: list[Path], *names: str) -> Path | None:
    return next((path for place in places if (path := found_file(place, *names)) is not None), None)


def _part(
    found: Public, what: str, places: list[Path], path: Path | None, names: tuple[str, ...], *folders: str
) -> Rows:
    """Rows of a part: from the file, from one of the names, or from a folder of CSV or JSON files."""
    path = path or _jsonl(places, *names)
    if path is not None:
        rows = read_jsonl(path)
        found.note(what, path, len(rows))
        return rows
    for folder in (place / name for place in places for name in folders):
        rows = [*_csv_rows(folder), *_json_rows(folder)] if folder.is_dir() else []
        if rows:
            found.note(what, folder, len(rows))
            return rows
    return []


def _csv_rows(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """MMLU's CSV files, one for each subject: question, four choices, answer. Cells stay text: `None` is a choice."""
    for path in sorted(folder.glob(f"*_{folder.name}.csv")) or sorted(folder.glob("*.csv")):
        subject = re.sub(r"_(dev|val|validation|test)$", "", path.stem)
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
        if rows and rows[0] and rows[0][-1].strip() not in "ABCD0123":  # a header
            rows = rows[1:]
        for number, cells in enumerate(rows):
            where = f"{path}:{number}"
            if len(cells) != 6 or cells[5].strip() not in list("ABCD0123"):
                raise DataError(
                    f"{where}: {len(cells)} cells, the last {cells[-1:]}; expected a question, four choices and an answer A to D or 0 to 3"
                )
            answer = "ABCD0123".index(cells[5].strip()) % 4
            yield where, {"subject": subject, "question": cells[0], "choices": cells[1:5], "answer": answer}


def _json_rows(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """MATH's files, one for each problem, in folders by subject, in the order of their numbers."""
    for path in sorted(folder.glob("*/*.json"), key=lambda p: (p.parent.name, len(p.stem), p.stem)):
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as e:
            raise DataError(f"{path}: not valid JSON ({e})") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}: found {type(row).__name__}, expected a JSON object")
        yield str(path), row
