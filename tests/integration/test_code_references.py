"""The published solutions of the code benchmarks pass through our sandbox and grader; with one token broken they fail."""

from __future__ import annotations

from pathlib import Path

import code_answers
import pytest

from pkt.evaluation.execution import Execution, Grade, grade_programs
from pkt.tasks.base import Example, Task
from pkt.tasks.formats import FORMATS

pytestmark = pytest.mark.usefixtures("bubblewrap")

CANNOT = {
    "mbpp_plus/255": "its tests make lists of more than 2 GiB",
    "mbpp_plus/599": "its tests add up ranges of 100,000,000 numbers, for half a minute",
}
"""References that pass no sandbox with the protocol's 10 seconds and 1 GiB."""
BLIND = dict.fromkeys(("mbpp_plus/737", "mbpp_plus/787", "mbpp_plus/794"), "its tests compare and assert nothing")
"""Tasks that any function passes which raises no error: the published tests, v0.2.0, lack the assertion."""
STEP = {"humaneval": 20, "mbpp": 97, "mbpp_plus": 126}
"""Of the sample in the normal tests."""


def graded(name: str, items: list[tuple[Example, str]]) -> dict[str, Grade]:
    found = grade_programs(Task(name, FORMATS[name], list, "test"), items, Execution(allowed=True))
    return {example.id: grade for (example, _), grade in zip(items, found, strict=True)}


def check(name: str, examples: list[Example]) -> None:
    grades = graded(name, [(e, code_answers.reference(e)) for e in examples])
    failed = {key: grade.detail for key, grade in grades.items() if grade != Grade(1.0, "")}
    assert failed.keys() == CANNOT.keys() & grades.keys(), failed
    grades = graded(name, [(e, code_answers.broken(e)) for e in examples if e.id not in CANNOT])
    assert {key for key, grade in grades.items() if grade.score or not grade.detail} == BLIND.keys() & grades.keys()


@pytest.mark.parametrize("name", STEP)
def test_a_sample_of_the_references(name: str, data_folder: Path) -> None:
    examples = code_answers.examples(data_folder, name)
    assert len(examples) == code_answers.COUNTS[name]
    check(name, examples[:: STEP[name]])


@pytest.mark.slow
@pytest.mark.parametrize("name", STEP)
def test_all_references(name: str, data_folder: Path) -> None:
    check(name, code_answers.examples(data_folder, name))
