"""Grades of outputs: by the format, or by running the program that the model wrote, where that is allowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pkt.evaluation.execution import Execution, grade_programs
from pkt.tasks.base import Example, Task


def check_gradable(task: Task, examples: Sequence[Example], execution: Execution) -> None:
    """Raise PktError if the outputs of some example could not be graded."""
    if any(task.format.executes(example) for example in examples):
        execution.check(task.name)
    for example in examples:
        if not task.format.executes(example):
            task.format.grade(example, "")


def grades(task: Task, items: Sequence[tuple[Example, str]], style: str, execution: Execution) -> list[float]:
    """The score in [0, 1] of every output, in order. Of equal programs one is run.

    Args:
        style: of the prompts, for code that stands in the prompt and belongs to the answer.

    Raises:
        SandboxError: programs may not or cannot be run.
    """
    form = task.format
    whole = [(example, _given(example, style) + output) for example, output in items]
    programs = {(e.id, text): (e, text) for e, text in whole if form.executes(e)}
    found = grade_programs(task, list(programs.values()), execution) if programs else []
    known = {key: grade.score for key, grade in zip(programs, found, strict=True)}
    return [known[e.id, text] if (e.id, text) in known else form.grade(e, text) for e, text in whole]


def _given(example: Example, style: str) -> str:
    return example.plain.given if style == "plain" and example.plain else ""


def earned(
    task: Task, examples: Mapping[str, Example], lines: Sequence[Mapping[str, Any]], style: str, execution: Execution
) -> list[float | None]:
    """The score that the outputs of each line earn; None where they are programs that may not be run.

    Args:
        examples: by id.
    """
    kept = [line.get("too_long") != "wrong" for line in lines]
    asked = [examples[line["id"]] for line in lines]
    left = [not execution.allowed and task.format.executes(example) for example in asked]
    texts = [_outputs(line) if k and not out else [] for line, k, out in zip(lines, kept, left, strict=True)]
    pairs = [(example, text) for example, of_line in zip(asked, texts, strict=True) for text in of_line]
    graded = iter(grades(task, pairs, style, execution))
    scores = [[next(graded) for _ in of_line] for of_line in texts]
    return [
        None if out and k else sum(of_line) / max(1, len(of_line))
        for of_line, k, out in zip(scores, kept, left, strict=True)
    ]


def _outputs(line: Mapping[str, Any]) -> list[str]:
    return list(line["outputs"]) if "outputs" in line else [line["output"]]
