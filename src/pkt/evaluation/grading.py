"""Grades of outputs: by the format, or by running the program that the model wrote, where that is allowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pkt.evaluation.execution import Execution
from pkt.tasks.base import Example, Task


def check_gradable(task: Task, examples: Sequence[Example], execution: Execution) -> None:
    """Raise PktError if the outputs of some example could not be graded."""
    for example in examples:
        task.format.grade(example, "")


def grades(task: Task, items: Sequence[tuple[Example, str]], style: str, execution: Execution) -> list[float]:
    """The score in [0, 1] of every output, in order.

    Args:
        style: of the prompts, for code that stands in the prompt and belongs to the answer.
    """
    return [task.format.grade(example, _given(example, style) + output) for example, output in items]


def _given(example: Example, style: str) -> str:
    return example.plain.given if style == "plain" and example.plain else ""


def outputs_of(line: Mapping[str, Any]) -> list[str]:
    """The outputs in a score line."""
    return list(line["outputs"]) if "outputs" in line else [line["output"]]
