"""A task's examples from the hub: the test set as published, the other splits dealt from the public training data.

They are dealt in a fixed random order: extract 20, align 80, valid 100 and train up to 1,000 rows, none of which is a test
item or another row again (`contamination`).
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pkt.errors import DataError
from pkt.quiet import errors_only
from pkt.tasks.base import UNLABELLED, Example
from pkt.tasks.contamination import without_repeats
from pkt.tasks.folder import Rows, test_rows
from pkt.tasks.format import Format
from pkt.tasks.formats import FORMATS
from pkt.tasks.instructions import reader_with
from pkt.tasks.reading import Dropped, check_ids, examples_of
from pkt.tasks.shots import worked_on_hub

DEALT = {"extract": 20, "align": 80, "valid": 100, "train": 1000}
SECONDS = 10
"""The hub must have answered within so many."""


@dataclass(frozen=True)
class Table:
    """A data set on the hub."""

    path: str
    configs: tuple[str | None, ...] = (None,)
    """Configurations that are put after each other."""
    train: str | None = None
    """Split to deal from; None: there is none."""
    test: str = "test"


HUB = {
    "gsm8k": Table("openai/gsm8k", ("main",), "train"),
    "mmlu": Table("cais/mmlu", ("all",), "validation"),  # dev rows stand in few-shot prompts
    "humaneval": Table("openai/openai_humaneval"),
    "mbpp": Table("google-research-datasets/mbpp", ("full",), "train"),
    "mbpp_plus": Table("evalplus/mbppplus"),
    "math": Table(
        "EleutherAI/hendrycks_math",
        (
            "algebra",
            "counting_and_probability",
            "geometry",
            "intermediate_algebra",
            "number_theory",
            "prealgebra",
            "precalculus",
        ),
        "train",
    ),
}

INSTRUCTIONS = Table("bigcode/humanevalpack", ("python",))
"""HumanEvalPack's, for HumanEval."""


class Hub:
    """The splits of a public data set.

    Args:
        dropped: takes down what is left out.
    """

    def __init__(self, form: Format, dropped: list[Dropped]) -> None:
        self.form, self.dropped = form, dropped
        self._read: dict[str, list[Example]] = {}

    def split(self, name: str) -> list[Example]:
        """The examples of a split.

        Raises:
            DataError: the data set has no such split, or cannot be read.
        """
        if name == "test":
            return self._test()
        table = HUB[self.form.name]
        if name == UNLABELLED:
            raise DataError(
                f"{self.form.name}: {table.path} has no unlabelled prompts; give a folder with --set task.data=DIR, or set method.unlabelled=0"
            )
        if self.form.name == "mbpp_plus":
            return self._dealt(FORMATS["mbpp"], HUB["mbpp"])[name]
        if table.train is None:
            raise DataError(
                f"{self.form.name}: {table.path} has a test split only and no {name}; give a folder with --set task.data=DIR"
            )
        return self._dealt(self.form, table)[name]

    def worked(self) -> Sequence[Example]:
        """The worked examples that may stand before a question."""
        return worked_on_hub(
            self.form,
            lambda: examples_of(read_table(HUB[self.form.name], "dev"), self.form.from_test, self.dropped),
        )

    def _test(self) -> list[Example]:
        if "test" not in self._read:
            read = reader_with(self.form, lambda: read_table(INSTRUCTIONS, "test"))
            found = examples_of(read_hub(self.form.name), read, self.dropped)
            check_ids(found, HUB[self.form.name].path)
            self._read["test"] = found
        return self._read["test"]

    def _dealt(self, form: Format, table: Table) -> dict[str, list[Example]]:
        """All splits but test."""
        if not self._read.keys() - {"test"}:
            rows = examples_of(read_table(table, table.train or ""), form.from_test, self.dropped)
            rows = without_repeats(form.name, rows, {self.form.name: self._test()}, self.dropped)
            random.Random(f"{table.path} {table.configs[0]}").shuffle(rows)
            self._read |= deal(rows, DEALT)
        return self._read


def deal(rows: list[Example], counts: dict[str, int]) -> dict[str, list[Example]]:
    """The first rows to the first split, and so on; a split takes what is there, up to its count."""
    found, start = {}, 0
    for name, count in counts.items():
        found[name] = rows[start : start + count]
        start += count
    return found


def read_hub(name: str) -> Rows:
    """The rows of a task's public test set, with their places.

    Raises:
        DataError: the data set cannot be read.
    """
    table = HUB[name]
    return test_rows(name, read_table(table, table.test), table.path)


def read_table(
    table: Table, split: str, advice: str = "give a folder with --set task.data=DIR (`pkt evaluate --data DIR`)"
) -> Rows:
    """The rows of a split of a data set on the hub (or in the library's cache), with their places.

    Args:
        advice: what else a user can do; ends the message.

    Raises:
        DataError: it cannot be read.
    """
    import datasets

    rows: Rows = []
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    with errors_only("huggingface_hub"), errors_only("datasets"), _offline_if_unreachable(table.path):
        for config in table.configs:
            name = table.path if len(table.configs) == 1 else f"{table.path}/{config}"
            try:
                part = datasets.load_dataset(table.path, config, split=split)
            except Exception as e:  # the libraries below raise a dozen kinds, some without a base of their own
                raise DataError(
                    f"data set {table.path} could not be read from the hub or the cache ({type(e).__name__}); check the network, or {advice}"
                ) from e
            rows += [(f"{name}/{split}/{i}", dict(row)) for i, row in enumerate(part)]
    return rows


@contextmanager
def _offline_if_unreachable(path: str) -> Iterator[None]:
    """One short question to the hub; without an answer the cache alone is read, and nothing is tried five times over."""
    import datasets
    import huggingface_hub

    if datasets.config.HF_HUB_OFFLINE or os.path.isdir(path):
        yield
        return
    try:
        huggingface_hub.HfApi().dataset_info(path, timeout=SECONDS)
        is_reached = True
    except Exception:  # no network, no such data set, no leave: loading says which
        is_reached = False
    before: Any = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or not is_reached
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
