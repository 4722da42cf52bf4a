"""The formats of the four benchmarks: how rows become examples, and how outputs are graded.

Split rows have `messages`, one user's and one assistant's; nano rows add `id`, `unit`, `tier`, `answer` and `choices`.
Any split row may have `paraphrases`, other user texts with the same response.
Test rows have the fields of the public test sets. Prompts and grading follow Open-Instruct's protocol, except that numbers
are compared by value: -3 is not 3, and 18.00 is 18.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from pkt.errors import DataError
from pkt.tasks.arithmetic import same_function
from pkt.tasks.base import Example

Row = dict[str, Any]

LETTERS = ("A", "B", "C", "D")
CODE_PREFIX = "Here is the completed function:\n\n\n```python\n"
NUMBER = re.compile(r"(?:(?<![\w)])-)?(?:\d*\.\d+|\d+)", re.ASCII)


@dataclass(frozen=True)
class Format:
    """One benchmark's format."""

    name: str
    prefix: str
    """Forced start of the response: evaluation appends it to the prompt."""
    answer_of: Callable[[str], str]
    """The gold answer in an assistant's text."""
    from_test: Callable[[Row, str], Example]
    """A row of the public test set, with where it stands, to an example."""
    grade: Callable[[Example, str], float]
    """Score in [0, 1] of an output."""
    ranks: bool = False
    """Whether choices are ranked by likelihood; else the model generates."""
    stop: tuple[str, ...] = ()
    max_new_tokens: int = 512

    def from_messages(self, row: Row, where: str) -> Example:
        """A row of the published split layout.

        Raises:
            DataError: with `where`, the field, and what was expected.
        """
        user, response = _contents(row, ["user", "assistant"], where)
        if "tier" not in row:  # the published rows; the nano world's texts stand as the models learnt them
            user, response = user.strip(), response.strip()
        name = _optional(row, "id", str, where, where)
        choices = tuple(_optional(row, "choices", list, where, LETTERS if self.ranks else ()))
        answer = _optional(row, "answer", str, where, None)
        answer = self.answer_of(response) if answer is None else answer
        if not answer or (self.ranks and answer not in choices):
            expected = f"one of {', '.join(map(str, choices))}" if self.ranks else f"{self.prefix!r} and an answer"
            raise DataError(
                f"{where}: field messages: no answer in the assistant's {response[-60:]!r}; expected {expected}"
            )
        paraphrases = _optional(row, "paraphrases", list, where, [])
        if not all(isinstance(text, str) and text.strip() for text in paraphrases):
            raise DataError(f"{where}: field paraphrases holds {paraphrases!r}, expected user texts that are not empty")
        return Example(
            id=name,
            prompt=user,
            response=response,
            answer=answer,
            unit=_optional(row, "unit", str, where, _optional(row, "category", str, where, name)),
            tier=_optional(row, "tier", str, where, ""),
            choices=choices,
            paraphrases=tuple(text.strip() for text in paraphrases),
        )

    def from_prompt(self, row: Row, where: str) -> Example:
        """A row of one user's message: a prompt without a label. Its response is the forced prefix alone.

        Raises:
            DataError: as `from_messages`.
        """
        (user,) = _contents(row, ["user"], where)
        name = _optional(row, "id", str, where, where)
        unit = _optional(row, "unit", str, where, name)
        text = user if "tier" in row else user.strip()
        return Example(id=name, prompt=text, response=self.prefix, answer="", unit=unit)


def _contents(row: Row, expected: list[str], where: str) -> list[str]:
    """The texts of a row's messages, whose roles must be as expected."""
    messages = field(row, "messages", list, where)
    roles = [m.get("role") if isinstance(m, dict) else None for m in messages]
    if roles != expected:
        raise DataError(f"{where}: field messages has roles {roles}, expected {expected}")
    return [field(m, "content", str, where) for m in messages]


def field(row: Row, name: str, kind: type, where: str) -> Any:
    """A field of a row, checked.

    Raises:
        DataError: missing or of another type.
    """
    if name not in row:
        raise DataError(f"{where}: no field {name!r}; found {', '.join(map(repr, row)) or 'none'}")
    if not isinstance(row[name], kind) or isinstance(row[name], bool):
        raise DataError(f"{where}: field {name} is {type(row[name]).__name__}, expected {kind.__name__}")
    return row[name]


def _optional(row: Row, name: str, kind: type, where: str, default: Any) -> Any:
    return field(row, name, kind, where) if name in row else default


def numbers(text: str) -> list[str]:
    """All numbers in a text, thousands commas dropped. A minus sign counts where no letter, digit or `)` is before it."""
    return NUMBER.findall(re.sub(r"(?<=\d),(?=\d)", "", text))


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


def grade_choice(example: Example, output: str) -> float:
    """1 if the chosen text is the right one."""
    return float(output.strip() == example.answer)


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
    prompt = f"Answer the following question.\n\nQuestion: {question.strip()}"
    return Example(
        id=where, prompt=prompt, response=f"Answer: {reasoning} So the answer is {answer}.", answer=answer, unit=where
    )


def _mmlu_answer(response: str) -> str:
    return response.rpartition("The answer is:")[2].strip()


def _mmlu_test(row: Row, where: str) -> Example:
    subject, question = (field(row, f, str, where) for f in ("subject", "question"))
    choices = field(row, "choices", list, where)
    answer = field(row, "answer", int, where)
    if len(choices) != 4 or not all(isinstance(c, str) for c in choices) or not 0 <= answer < 4:
        raise DataError(
            f"{where}: {len(choices)} choices and answer {answer}, expected 4 texts and an answer of 0 to 3"
        )
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=True))
    head = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
    return Example(
        id=where,
        prompt=f"{head}{question.strip()}\n{listed}\nAnswer:",
        response=f"The answer is: {LETTERS[answer]}",
        answer=LETTERS[answer],
        unit=subject,
        choices=LETTERS,
    )


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


CODE_STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n```")

FORMATS = {
    "mmlu": Format("mmlu", "The answer is:", _mmlu_answer, _mmlu_test, grade_choice, ranks=True),
    "gsm8k": Format("gsm8k", "Answer:", _gsm8k_answer, _gsm8k_test, grade_gsm8k),
    "humaneval": Format("humaneval", CODE_PREFIX, _code_answer, _humaneval_test, grade_code, stop=CODE_STOPS),
    "mbpp": Format("mbpp", CODE_PREFIX, _code_answer, _mbpp_test, grade_code, stop=CODE_STOPS),
}
