"""HumanEval and MBPP: Python functions from docstrings and from descriptions."""

from __future__ import annotations

from dataclasses import replace

from pkt.errors import DataError
from pkt.tasks.arithmetic import same_function
from pkt.tasks.base import Example, Plain
from pkt.tasks.format import Format, Row, field
from pkt.tasks.protocol import Protocol

INSTRUCTION = "Complete the following python function.\n\n\n"
CODE_PREFIX = "Here is the completed function:\n\n\n```python\n"
PACK_PREFIX = "Here is the function:\n\n```python\n"
"""Before a HumanEval prompt, where the question is HumanEvalPack's instruction."""
FENCE = "```"
CODE_STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
SAMPLED = Protocol(samples=20, temperature=0.1)


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
    instruction = field(row, "instruction", str, where) if "instruction" in row else ""
    start = PACK_PREFIX if instruction else CODE_PREFIX
    return Example(
        id=name,
        prompt=instruction or INSTRUCTION + prompt,
        response=start + prompt + solution,
        answer=prompt + solution,
        unit=name,
        opening=PACK_PREFIX + prompt if instruction else "",
        plain=Plain(prompt, solution),
    )


def _mbpp_plain(prompt: str, response: str) -> Plain:
    """Description and header, after which the code goes on."""
    text, code = prompt.removeprefix(INSTRUCTION), response.removeprefix(CODE_PREFIX)
    header = code.split(":", 1)[0]
    if not text.endswith(header):  # the splits' users' texts are stripped
        header = header.rstrip()
    if not header or not text.endswith(header):
        return Plain(f"{text}\n", code)
    return Plain(text, code.removeprefix(header), header)


def _mbpp_test(row: Row, where: str) -> Example:
    number = field(row, "task_id", int, where)
    text, code = (field(row, f, str, where).replace("\r\n", "\n") for f in ("text", "code"))
    user = f"{INSTRUCTION}{text}\n{code.split(':', 1)[0]}"
    return Example(
        id=f"mbpp/{number}",
        prompt=user,
        response=CODE_PREFIX + code,
        answer=code,
        unit=f"mbpp/{number}",
        plain=_mbpp_plain(user, CODE_PREFIX + code),
    )


HUMANEVAL = Format(
    "humaneval",
    CODE_PREFIX,
    _code_answer,
    _humaneval_test,
    grade_code,
    stop=(*CODE_STOPS, f"\n{FENCE}"),
    plain_stop=CODE_STOPS,
    protocol=replace(SAMPLED, top_p=0.95),
    version=2,
)
MBPP = Format(
    "mbpp",
    CODE_PREFIX,
    _code_answer,
    _mbpp_test,
    grade_code,
    stop=(FENCE,),
    plain_stop=(*CODE_STOPS, FENCE),
    protocol=SAMPLED,
    plain=_mbpp_plain,
    version=2,
)
