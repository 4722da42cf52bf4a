"""Splits of one's own from public training data: disjoint from each other and from the test set, the same for the same seed.

1. Rows become examples; corrupt ones, test items and rows that stand there twice are left out, by name.
2. The rest is shuffled by seed and task, and dealt: extract, align, valid, train. MBPP's validation rows go to `valid` first;
   MMLU's dev rows, which stand in few-shot prompts, are used only where its validation rows are not enough.
3. `DIR/splits/TASK` gets the published layout (`messages`, `id`), a card and `contamination.json`; `DIR/test/TASK` the test set.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pkt.errors import ConfigError, DataError
from pkt.files import locked, write_json, write_text
from pkt.models.checkpoint import file_digest, is_nano
from pkt.registry import nearest
from pkt.tasks.base import Example
from pkt.tasks.contamination import without_repeats
from pkt.tasks.folder import Rows, found_file, home, test_file, test_rows
from pkt.tasks.format import Row
from pkt.tasks.formats import FORMATS
from pkt.tasks.hub import DEALT
from pkt.tasks.jsonl import read_jsonl
from pkt.tasks.overlaps import FEW_SHOT, report
from pkt.tasks.raw import Public, read_public, whole_test
from pkt.tasks.reading import Dropped, examples_of

LICENCES = {
    "gsm8k": "MIT (openai/grade-school-math)",
    "mmlu": "MIT (hendrycks/test)",
    "mbpp": "CC BY 4.0 (google-research, MBPP)",
    "mbpp_plus": "CC BY 4.0 (google-research, MBPP); tests: Apache-2.0 (evalplus)",
    "math": "MIT (hendrycks/math)",
    "humaneval": "test set: MIT (openai/human-eval)",
}
FILE = "contamination.json"
TEST_NAMES = {"mbpp_plus": "mbpp_plus.jsonl"}
COLUMNS = {"mmlu": ("subject", "question", "choices", "answer")}
"""Of test rows, where the source has more."""


@dataclass(frozen=True)
class Prepared:
    """What was made."""

    folder: Path
    asked: Mapping[str, int]
    splits: Mapping[str, Sequence[Example]]
    contamination: Mapping[str, Any]
    files: Sequence[Path] = ()


def prepare(
    task: str,
    folder: Path,
    *,
    seed: int = 0,
    place: Path | None = None,
    test: Path | None = None,
    counts: Mapping[str, int] = DEALT,
) -> Prepared:
    """Build a task's splits and its test set in a data folder.

    Args:
        folder: may hold other tasks' data already; what it holds of this one must be the same test set.
        place: file or folder with raw data; None means the hub.
        test: file with the test set, where it is not in `place`.
        counts: rows of each split; `train` takes what is left, up to its count.

    Raises:
        ConfigError: no such task, or the place is taken.
        DataError: there is no training data, or too little.
    """
    known = [name for name in FORMATS if name in LICENCES]
    if is_nano(task):
        raise ConfigError(f"task {task} is embedded; there is nothing to prepare")
    if task not in known:
        raise ConfigError(f"unknown task {task!r}; {nearest(task, known)}")
    _check_free(folder, task)
    public = read_public(task, place, test)
    if task not in public.tests:
        public.tests = {task: _test_there(folder, task), **public.tests}
    dropped: list[Dropped] = []
    tests = {
        name: examples_of(test_rows(name, rows, ""), FORMATS[name].from_test, dropped)
        for name, rows in public.tests.items()
    }
    splits = _deal(_pools(task, public, tests, dropped), task, seed, counts)
    few_shot = examples_of(public.few_shot, FORMATS[task].from_test, dropped)
    found = report(
        task,
        splits,
        {**tests, **({FEW_SHOT: few_shot} if few_shot else {})},
        folder if folder.is_dir() else None,
        origin="own rows" if public.is_own else "public training data",
        dropped=dropped,
    )
    prepared = Prepared(folder, counts, splits, found)
    return replace(prepared, files=_write(prepared, task, seed, public))


def _check_free(folder: Path, task: str) -> None:
    place = folder / "splits" / home(task)
    for path in (folder, *folder.parents, place, place.parent, folder / "test" / home(task)):
        if path.exists() and not path.is_dir():
            raise ConfigError(f"{path} is a file; give another folder with --out")
    if place.is_dir() and any(place.iterdir()):
        raise ConfigError(f"{place} is not empty; remove it, or give another folder with --out")


def _test_there(folder: Path, task: str) -> Rows:
    """The test set that the folder already holds."""
    path = test_file(folder, task)
    if path is None:
        raise DataError(
            f"{task}: no test set beside the training data; give its file with --test FILE, so that no row of it comes into a split"
        )
    return whole_test(task, path)


Pools = dict[str, list[Example]]


def _pools(task: str, public: Public, tests: Mapping[str, Sequence[Example]], dropped: list[Dropped]) -> Pools:
    """Examples by pool, without test items and repetitions."""
    pools = {"valid": public.valid, "train": public.train, "reserve": public.reserve}
    found = {name: _examples(task, name, rows, public, dropped) for name, rows in pools.items()}
    kept = without_repeats(home(task), [e for examples in found.values() for e in examples], tests, dropped)
    is_kept = {id(e) for e in kept}
    return {name: [e for e in examples if id(e) in is_kept] for name, examples in found.items()}


def _examples(task: str, pool: str, rows: Rows, public: Public, dropped: list[Dropped]) -> list[Example]:
    """Rows as examples whose ids say which row of the public data they are."""
    form = FORMATS[home(task)]
    read = form.from_messages if public.is_own else form.from_test
    ids = dict(zip((where for where, _ in rows), _ids(task, pool, rows, is_own=public.is_own), strict=True))

    def one(row: Row, where: str) -> Example:
        try:
            return read(row, ids[where])
        except DataError as e:
            raise DataError(str(e).replace(ids[where], where, 1)) from None

    return examples_of(rows, one, dropped)


def _ids(task: str, pool: str, rows: Rows, *, is_own: bool) -> list[str]:
    """Names of rows: numbers count from 0, in MMLU within a subject's part."""
    if is_own:
        return [where.rsplit("/", 1)[-1] for where, _ in rows]
    if task != "mmlu":
        return [f"{'gsm' if task == 'gsm8k' else task}_{i}" for i in range(len(rows))]
    counts: Counter[str] = Counter()
    found = []
    for _, row in rows:
        subject = str(row.get("subject"))
        found.append(f"{subject}_{'dev' if pool == 'reserve' else 'validation'}_{counts[subject]}")
        counts[subject] += 1
    return found


def _deal(pools: Pools, task: str, seed: int, counts: Mapping[str, int]) -> dict[str, list[Example]]:
    """The splits, in the order that folders have them."""
    gen = random.Random(f"{seed} {home(task)}")
    for examples in pools.values():
        gen.shuffle(examples)
    rows = pools["train"]
    if len(rows) + len(pools["valid"]) < sum(counts.values()):
        rows = rows + pools["reserve"]
    found, start = {}, 0
    for name in ("extract", "align", "valid", "train"):
        first = pools["valid"][: counts[name]] if name == "valid" else []
        end = start + counts[name] - len(first)
        found[name] = first + rows[start:end]
        start = end
    short = [name for name in found if len(found[name]) < (counts[name] if name != "train" else 1)]
    if short:
        least = sum(counts[name] for name in found if name != "train")
        raise DataError(
            f"{task}: {len(rows) + len(pools['valid'])} rows can be used (none that stands in the test set, or is there twice), but extract, "
            f"align and valid take {least} and train needs one at least; lower --extract, --align or --valid, or give more rows"
        )
    return found


def _write(prepared: Prepared, task: str, seed: int, public: Public) -> list[Path]:
    """Everything, under a temporary name first: the splits' folder appears whole or not at all."""
    folder = prepared.folder
    with locked(folder):
        _check_free(folder, task)
        temporary = folder / f".prepare-{home(task)}"
        shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
        try:
            for name, examples in prepared.splits.items():
                write_text(temporary / f"{name}.jsonl", _lines([_row(e, public) for e in examples]))
            write_json(temporary / FILE, prepared.contamination)
            tests = _write_tests(folder, task, public)
            write_text(temporary / "README.md", card(prepared, task, seed, public, temporary, tests))
            names = sorted(path.name for path in temporary.iterdir())
            place = folder / "splits" / home(task)
            place.parent.mkdir(exist_ok=True)
            os.replace(temporary, place)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return [*(place / name for name in names), *tests]


def _write_tests(folder: Path, task: str, public: Public) -> list[Path]:
    """The test sets that are not there yet; one that is there must be the same.

    Raises:
        ConfigError: another test set is there.
    """
    place = folder / "test" / home(task)
    texts = {TEST_NAMES.get(name, "test.jsonl"): _lines(_slim(task, rows)) for name, rows in public.tests.items()}
    if public.few_shot:
        texts["dev.jsonl"] = _lines(_slim(task, public.few_shot))
    for name, text in texts.items():
        there = found_file(place, name)
        if there is not None and [row for _, row in read_jsonl(there)] != [
            json.loads(line) for line in text.splitlines()
        ]:
            raise ConfigError(
                f"{there} holds another test set than the one that was read; remove it, or give another folder with --out"
            )
    for name, text in texts.items():
        if found_file(place, name) is None:
            write_text(place / name, text)
    return [path for name in texts if (path := found_file(place, name)) is not None]


def _slim(task: str, rows: Rows) -> list[Row]:
    """Test rows with the fields that are read."""
    names = COLUMNS.get(task)
    return [{key: row[key] for key in names} if names else row for _, row in rows]


def _row(example: Example, public: Public) -> Row:
    """An example in the published layout."""
    messages = [{"role": "user", "content": example.prompt}, {"role": "assistant", "content": example.response}]
    row: Row = {"id": example.id, "messages": messages}
    if example.unit != example.id:
        row["category"] = example.unit
    if example.paraphrases:
        row["paraphrases"] = list(example.paraphrases)
    return row


def _lines(rows: Sequence[Row]) -> str:
    """JSON lines in ASCII, so that no raw line break of another kind stands in them."""
    return "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows)


def card(prepared: Prepared, task: str, seed: int, public: Public, splits: Path, tests: Sequence[Path]) -> str:
    """The data card: sources, counts, seed, hashes, licence as known."""
    asked = ", ".join(f"{name} {count}" for name, count in prepared.asked.items())
    sources = "".join(
        f"| {s['what']} | {s['from']} | {s['rows']:,} | {s.get('sha256', '-')} |\n" for s in public.sources
    )
    files = "".join(
        f"| {path.name} | {len(read_jsonl(path)):,} | {file_digest(path)} |\n"
        for path in [*(splits / f"{name}.jsonl" for name in prepared.splits), *tests]
    )
    reasons = Counter(row["reason"] for row in prepared.contamination["dropped"])
    dropped = "".join(f"- {count} rows: {reason}\n" for reason, count in sorted(reasons.items())) or "- none\n"
    licence = "that of your own rows" if public.is_own else LICENCES[task]
    return f"""# {task}: splits made by `pkt data prepare`

Seed {seed}; asked for {asked}. Licence of the data, as known: {licence}.

## Sources

| what | from | rows | SHA-256 |
| --- | --- | ---: | --- |
{sources}
## Files

| file | rows | SHA-256 |
| --- | ---: | --- |
{files}
## Left out

{dropped}
`contamination.json` names each row with its reason, and lists what the splits share with test sets.
"""
