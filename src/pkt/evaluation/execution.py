"""Leave to run code that a model has written, and grading by running it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pkt.errors import SandboxError
from pkt.evaluation import sandbox
from pkt.tasks.base import Example, Task
from pkt.tasks.programs import completed


@dataclass(frozen=True, slots=True)
class Execution:
    """Whether and how generated code is run. It is no part of a recipe: the machine's owner decides."""

    allowed: bool = False
    """`--allow-code-execution`."""
    is_sandboxed: bool = True
    """False with the unsafe flag alone: programs run as the user, with the user's files and network."""
    workers: int = 0
    """Programs at a time; 0: one per core."""

    def check(self, task_name: str) -> None:
        """Stop before any work where programs must not, or cannot, be run.

        Raises:
            SandboxError: there is no leave, or no sandbox.
        """
        if not self.allowed:
            raise SandboxError(
                f"{task_name}: grading runs the code that the model writes; pass --allow-code-execution to run it in a sandbox"
            )
        sandbox.check(self.is_sandboxed)


NO_LEAVE = Execution()
"""To run generated code."""


@dataclass(frozen=True, slots=True)
class Grade:
    """What one output is worth."""

    score: float
    """1 if its program ran to the end of the tests, else 0."""
    detail: str
    """What stopped it, in a few words; empty where nothing did."""


def grade_programs(task: Task, items: Sequence[tuple[Example, str]], execution: Execution) -> list[Grade]:
    """Run the program that each output makes, with its example's tests.

    Args:
        items: examples for which `task.format.executes`, each with what the model wrote after the forced start.

    Returns: a grade for each item, in the order given.

    Raises:
        SandboxError: programs may not or cannot be run.
    """
    execution.check(task.name)
    form = task.format
    limits = sandbox.Limits(seconds=form.seconds)
    programs = [sandbox.Program(completed(e, output), e.tests, limits, form.packages) for e, output in items]
    outcomes = sandbox.run_all(programs, workers=execution.workers, is_sandboxed=execution.is_sandboxed)
    return [Grade(float(outcome.passed), outcome.reason) for outcome in outcomes]
