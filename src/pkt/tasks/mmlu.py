"""MMLU: four choices, ranked by the likelihood of their letters."""

from __future__ import annotations

from pkt.errors import DataError
from pkt.tasks.base import Example
from pkt.tasks.format import Format, Row, field

LETTERS = ("A", "B", "C", "D")


def grade_choice(example: Example, output: str) -> float:
    """1 if the chosen text is the right one."""
    return float(output.strip() == example.answer)


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


MMLU = Format("mmlu", "The answer is:", _mmlu_answer, _mmlu_test, grade_choice, ranks=True, choices=LETTERS)
