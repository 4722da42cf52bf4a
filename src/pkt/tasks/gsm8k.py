"""GSM8K: word problems, graded by the last number, which is compared by value: -3 is not 3, and 18.00 is 18."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal, InvalidOperation

from pkt.errors import DataError
from pkt.tasks.base import Example
from pkt.tasks.format import Format, Row, field

HEAD, HEAD_WITH_SHOTS = "Answer the following question.\n\n", "Answer the following questions.\n\n"
NUMBER = re.compile(r"(?:(?<![\w)])-)?(?:\d*\.\d+|\d+)", re.ASCII)


def numbers(text: str) -> list[str]:
    """All numbers in a text, thousands commas dropped. A minus sign counts where no letter, digit or `)` is before it: -$5 is -5."""
    plain = re.sub(r"-[$€£](?=[\d.])", "-", text.replace("\N{MINUS SIGN}", "-"))
    return NUMBER.findall(re.sub(r"(?<=\d),(?=\d)", "", plain))


def same_number(found: str, gold: str) -> bool:
    """Whether two texts are the same number: 18.00 is 18."""
    try:
        return Decimal(found) == Decimal(gold)
    except InvalidOperation:
        return False


def grade_gsm8k(example: Example, output: str) -> float:
    """1 if the last number of the output is the answer."""
    found = numbers(output)
    return float(bool(found) and same_number(found[-1], example.answer))


def _gsm8k_answer(response: str) -> str:
    found = numbers(response.rsplit("So the answer is", 1)[-1])
    return found[-1] if found else ""


def _gsm8k_test(row: Row, where: str) -> Example:
    question, solution = field(row, "question", str, where), field(row, "answer", str, where)
    reasoning, mark, answer = solution.rpartition("####")
    if not mark:
        raise DataError(f"{where}: field answer has no '#### number'")
    answer = answer.strip().replace(",", "")
    if numbers(answer) != [answer]:
        raise DataError(f"{where}: field answer ends in {answer!r}, expected a number after '####'")
    reasoning = re.sub(r"<<.*?>>", "", reasoning).strip().replace("\n", " ")
    prompt = f"{HEAD}Question: {question.strip()}"
    return Example(
        id=where, prompt=prompt, response=f"Answer: {reasoning} So the answer is {answer}.", answer=answer, unit=where
    )


def _worked(row: Row, where: str) -> Example:
    """A question with its chain of thought, to stand before another."""
    question, thought, answer = (field(row, f, str, where) for f in ("question", "cot_answer", "short_answer"))
    return Example(
        id=where, prompt=f"{HEAD}Question: {question}", response=f"Answer: {thought}", answer=answer, unit=where
    )


def _shown(example: Example, shots: Sequence[Example]) -> Example:
    if not shots:
        return example
    worked = [f"{shot.prompt.removeprefix(HEAD)}\n{shot.response}" for shot in shots]
    return replace(example, prompt=HEAD_WITH_SHOTS + "\n\n".join([*worked, example.prompt.removeprefix(HEAD)]))


GSM8K = Format(
    "gsm8k",
    "Answer:",
    _gsm8k_answer,
    _gsm8k_test,
    grade_gsm8k,
    plain_stop=("\n",),
    shown=_shown,
    from_worked=_worked,
    version=2,
)
