"""Which rows of a split repeat an item of a test set.

1. Of every item the texts that make it what it is are taken, by the task's format: `texts`.
2. A row repeats a test item where a text of one name is equal: *exact* (after white space at the ends, and with \\n as line
   end), or *normalised*: NFKD, lower case, a-z and 0-9 alone. HumanEval's items are looked for inside a row's whole text.
3. `runs` counts rows that share a run of 13 words with a test item, a weaker sign.

Normalised texts of mathematics lose their signs: there a normalised match that is not exact is a hint.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pkt.tasks.base import Example
from pkt.tasks.reading import Dropped
from pkt.tasks.texts import CODE, NUMBER, QUESTION, SAME, Texts, compared_texts, normalised

RUN = 13
"""Words of a shared run."""


@dataclass(frozen=True)
class Match:
    """A row that repeats test items in one of the texts."""

    id: str
    what: str
    exact: bool
    test_ids: list[str]


@dataclass(frozen=True)
class Overlap:
    """One split against one test set."""

    split: str
    num_rows: int
    test: str
    num_tests: int
    matches: list[Match]
    runs: list[str]
    """Ids of rows that share a run of words with a test item."""

    @property
    def same(self) -> list[Match]:
        """Matches that make a row the test item itself."""
        names = SAME.get(self.test.split(" ")[0])
        return [m for m in self.matches if names is None or m.what in names]

    def num_same(self, *, exact: bool) -> int:
        """Rows that are a test item."""
        return len({m.id for m in self.same if m.exact or not exact})

    def record(self) -> dict[str, Any]:
        """As it stands in `contamination.json`."""
        names = dict.fromkeys(m.what for m in self.matches)
        return {
            "split": self.split,
            "num_rows": self.num_rows,
            "test": self.test,
            "num_test_items": self.num_tests,
            "exact": self.num_same(exact=True),
            "normalised": self.num_same(exact=False),
            "by_text": {
                name: {
                    "exact": sum(m.what == name and m.exact for m in self.matches),
                    "normalised": sum(m.what == name for m in self.matches),
                }
                for name in names
            },
            f"{RUN}_word_runs": len(self.runs),
            "rows": [{"id": m.id, "what": m.what, "exact": m.exact, "test_ids": m.test_ids} for m in self.matches],
        }


@dataclass(frozen=True)
class Split:
    """Rows of a split, ready to be compared."""

    name: str
    rows: list[Texts]


@dataclass(frozen=True)
class TestSet:
    """Items of a test set, ready to be compared."""

    name: str
    items: list[Texts]


def split_of(name: str, task: str, examples: Iterable[Example]) -> Split:
    """A split of a task."""
    return Split(name, [compared_texts(task, e) for e in examples])


def numbered(split: Split, tasks: TestSet) -> Split:
    """A split of MBPP with the task ids of its rows, which the published splits leave out, from all tasks by text and code."""
    known = {_text_and_code(task): task.named[NUMBER] for task in tasks.items if NUMBER in task.named}
    rows = [
        replace(row, named={NUMBER: known[_text_and_code(row)], **row.named}) if _text_and_code(row) in known else row
        for row in split.rows
    ]
    return Split(split.name, rows)


def _text_and_code(texts: Texts) -> tuple[str, str]:
    return normalised(texts.named.get(QUESTION, "")), normalised(texts.named.get(CODE, ""))


def test_set_of(name: str, task: str, examples: Iterable[Example]) -> TestSet:
    """A test set of a task, under the name that reports give it."""
    return TestSet(name, [compared_texts(task, e) for e in examples])


def overlaps(splits: Sequence[Split], test: TestSet, *, runs: bool = True) -> list[Overlap]:
    """Every split against a test set, in the order of the splits.

    Args:
        runs: look for shared runs of 13 words too.
    """
    exact, loose = _index(test.items, lambda text: text), _index(test.items, normalised)
    shared = _shared_runs(splits, test) if runs else [[] for _ in splits]
    return [
        Overlap(split.name, len(split.rows), test.name, len(test.items), _matches(split, test, exact, loose), ids)
        for split, ids in zip(splits, shared, strict=True)
    ]


Index = dict[tuple[str, str], list[str]]


def _index(items: Sequence[Texts], form: Callable[[str], str]) -> Index:
    """Ids by name and text of an item."""
    found: Index = {}
    for item in items:
        for what, text in item.named.items():
            found.setdefault((what, form(text)), []).append(item.id)
    return found


def _matches(split: Split, test: TestSet, exact: Index, loose: Index) -> list[Match]:
    found = []
    contained = _contained(split, test)
    for i, row in enumerate(split.rows):
        for what, text in row.named.items():
            ids = loose.get((what, normalised(text)), []) if normalised(text) else exact.get((what, text), [])
            if ids:
                found.append(Match(row.id, what, (what, text) in exact, ids))
        found += contained.get(i, [])
    return found


def _contained(split: Split, test: TestSet) -> dict[int, list[Match]]:
    """Matches, by row number, of test items that stand inside a row."""
    wanted = [(item, what, text) for item in test.items for what, text in item.inside.items()]
    if not wanted:
        return {}
    loose = [normalised(row.whole) for row in split.rows]
    everything = "\n".join(loose)  # one search for all rows: next to none is found
    found: dict[int, dict[tuple[str, bool], list[str]]] = {}
    for item, what, text in wanted:
        if normalised(text) in everything:
            for i in (i for i, row in enumerate(loose) if normalised(text) in row):
                found.setdefault(i, {}).setdefault((what, text in split.rows[i].whole), []).append(item.id)
    return {
        i: [Match(split.rows[i].id, what, is_exact, ids) for (what, is_exact), ids in of_row.items()]
        for i, of_row in found.items()
    }


def _runs(text: Texts) -> set[int]:
    """Hashes of the runs of words in an item's question."""
    words = re.findall(r"\w+", unicodedata.normalize("NFKD", text.named.get(QUESTION, "")).lower())
    return {hash(tuple(words[i : i + RUN])) for i in range(len(words) - RUN + 1)}


def _shared_runs(splits: Sequence[Split], test: TestSet) -> list[list[str]]:
    """Per split the ids of rows that share a run with a test item."""
    of_rows = [[_runs(row) for row in split.rows] for split in splits]
    wanted = set().union(*(runs for split in of_rows for runs in split))
    seen: set[int] = set()
    for item in test.items:
        seen |= wanted & _runs(item)
    return [
        [row.id for row, runs in zip(split.rows, of_split, strict=True) if runs & seen]
        for split, of_split in zip(splits, of_rows, strict=True)
    ]


def repeats(task: str, examples: Sequence[Example], test: str, items: Sequence[Example]) -> dict[int, Dropped]:
    """Which examples of a task are items of a test set, by number, with what they repeat."""
    rows = Split(task, [replace(compared_texts(task, e), id=str(i)) for i, e in enumerate(examples)])
    (found,) = overlaps([rows], test_set_of(test, test, items), runs=False)
    reasons: dict[int, Dropped] = {}
    for match in found.same:
        i, how = int(match.id), "exact" if match.exact else "normalised"
        row = Dropped(task, examples[i].id, f"a test item of {test}: {match.what}, {how}", match.test_ids[0])
        reasons.setdefault(i, row)
    return reasons


def without_repeats(
    task: str, examples: Sequence[Example], tests: Mapping[str, Sequence[Example]], dropped: list[Dropped]
) -> list[Example]:
    """The examples of a task that are no item of the test sets (by their tasks), and no earlier example again.

    Args:
        dropped: takes down the others, with the reason.
    """
    left_out: dict[int, Dropped] = {}
    for name, items in tests.items():
        left_out = repeats(task, examples, name, items) | left_out
    seen: dict[tuple[str, str], str] = {}
    names = SAME.get(task)
    for i, example in enumerate(examples):
        if i in left_out:
            continue
        named = compared_texts(task, example).named
        keys = [(what, normalised(text) or text) for what, text in named.items() if names is None or what in names]
        again = next((key for key in keys if key in seen), None)
        if again is None:
            seen |= dict.fromkeys(keys, example.id)
        else:
            left_out[i] = Dropped(task, example.id, f"another row again: {again[0]}", seen[again])
    dropped += [row for _, row in sorted(left_out.items())]
    return [example for i, example in enumerate(examples) if i not in left_out]
