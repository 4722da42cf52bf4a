"""HumanEval, MBPP and MBPP+: Python functions from docstrings and from descriptions.

The program of an item is its header, what the model wrote (`programs.py`) and its tests, as in Open-Instruct's protocol; the sandbox
runs it, with the protocol's seconds as CPU time. Nano items are one-expression functions, which are never run.
"""

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
        expected = "run its tests" if example.tests else "an item of a test set, whose tests can be run"
        raise DataError(f"{example.id}: an answer of this task cannot be graded by its text; expected {expected}")
    return float(same_function(output, example.answer))


def _code_answer(response: str) -> str:
    return response.removeprefix(CODE_PREFIX)


def _humaneval_test(row: Row, where: str) -> Example:
    fields = ("task_id", "prompt", "canonical_solution", "test", "entry_point")
    name, prompt, solution, test, entry = (field(row, f, str, where) for f in fields)
    if f"def {entry}(" not in prompt:
        raise DataError(
            f"{where}: field entry_point is {entry!r}, expected the name of a function that the prompt begins"
        )
    instruction = field(row, "instruction", str, where) if "instruction" in row else ""
    start = PACK_PREFIX if instruction else CODE_PREFIX
    return Example(
        id=name,
        prompt=instruction or INSTRUCTION + prompt,
        response=start + prompt + solution,
        answer=prompt + solution,
        unit=name,
        opening=PACK_PREFIX + prompt if instruction else "",
        header=prompt,
        tests=f"{test}\ncheck({entry})",
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
    number, text, code = field(row, "task_id", int, where), _lines(row, "text", where), _lines(row, "code", where)
    setup = _lines(row, "test_setup_code", where) if "test_setup_code" in row else ""
    return _mbpp(f"mbpp/{number}", f"{text}\n", code, f"{setup}\n" + "\n".join(_asserts(row, where)))


def _mbpp_plus_test(row: Row, where: str) -> Example:
    """A row of EvalPlus's file, whose code starts with a line break and whose tests are a script that imports numpy."""
    number = field(row, "task_id", int, where)
    text, code, tests = (_lines(row, f, where) for f in ("prompt", "code", "test"))
    return _mbpp(f"mbpp_plus/{number}", text, code, tests)


def _mbpp(name: str, text: str, code: str, tests: str) -> Example:
    user = f"{INSTRUCTION}{text}{code.split(':', 1)[0]}"
    return Example(
        id=name,
        prompt=user,
        response=CODE_PREFIX + code,
        answer=code,
        unit=name,
        tests=tests,
        plain=_mbpp_plain(user, CODE_PREFIX + code),
    )


def _lines(row: Row, name: str, where: str) -> str:
    return str(field(row, name, str, where)).replace("\r\n", "\n")


def _asserts(row: Row, where: str) -> list[str]:
    """The test list.

    Raises:
        DataError: it is empty, or holds something else than texts.
    """
    found = field(row, "test_list", list, where)
    if not found or not all(isinstance(text, str) for text in found):
        raise DataError(f"{where}: field test_list holds {found!r}, expected assertions")
    return [text.replace("\r\n", "\n") for text in found]


HUMANEVAL = Format(
    "humaneval",
    CODE_PREFIX,
    _code_answer,
    _humaneval_test,
    grade_code,
    stop=(*CODE_STOPS, f"\n{FENCE}"),
    plain_stop=CODE_STOPS,
    protocol=replace(SAMPLED, top_p=0.95),
    seconds=3,
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
    seconds=10,
    version=2,
)
MBPP_PLUS = replace(MBPP, name="mbpp_plus", from_test=_mbpp_plus_test, packages=("numpy",), version=1)
