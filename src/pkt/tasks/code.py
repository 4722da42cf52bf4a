"""HumanEval and MBPP: Python functions from docstrings and from descriptions."""

from __future__ import annotations

from pkt.errors import DataError
from pkt.tasks.arithmetic import same_function
from pkt.tasks.base import Example
from pkt.tasks.format import Format, Row, field

CODE_PREFIX = "Here is the completed function:\n\n\n```python\n"
CODE_STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n```")


def grade_code(example: Example, output: str) -> float:
    """1 if a one-expression function computes the same; see `arithmetic`. Nothing is executed.

    Raises:
        DataError: the item needs its tests to be run.
    """
    if not example.tier:
        raise DataError(
            f"{example.id}: grading generated code of this task needs the sandbox, which is not part of this version; "
            f"score a nano task, mmlu or gsm8k"
        )
    return float(same_function(output, example.answer))


def _code_answer(response: str) -> str:
    return response.removeprefix(CODE_PREFIX)


def _humaneval_test(row: Row, where: str) -> Example:
    name, prompt, solution = (field(row, f, str, where) for f in ("task_id", "prompt", "canonical_solution"))
    user = f"Complete the following python function.\n\n\n{prompt}"
    return Example(id=name, prompt=user, response=CODE_PREFIX + prompt + solution, answer=prompt + solution, unit=name)


def _mbpp_test(row: Row, where: str) -> Example:
    number = field(row, "task_id", int, where)
    text, code = (field(row, f, str, where).replace("\r\n", "\n") for f in ("text", "code"))
    user = f"Complete the following python function.\n\n\n{text}\n{code.split(':', 1)[0]}"
    return Example(id=f"mbpp/{number}", prompt=user, response=CODE_PREFIX + code, answer=code, unit=f"mbpp/{number}")


HUMANEVAL = Format("humaneval", CODE_PREFIX, _code_answer, _humaneval_test, grade_code, stop=CODE_STOPS)
MBPP = Format("mbpp", CODE_PREFIX, _code_answer, _mbpp_test, grade_code, stop=CODE_STOPS)
