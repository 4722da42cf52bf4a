"""MMLU: four choices, ranked by the likelihood of their letters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pkt.errors import DataError
from pkt.tasks.base import Example, Plain
from pkt.tasks.format import Format, Row, field

LETTERS = ("A", "B", "C", "D")
PREFIX = "The answer is:"
SEPARATOR = "\n\n"
SHOTS_ROOM = 2048
"""Tokens of a prompt; beyond, worked examples are dropped."""


def grade_choice(example: Example, output: str) -> float:
    """1 if the chosen text is the right one."""
    return float(output.strip() == example.answer)


def _mmlu_answer(response: str) -> str:
    return response.rpartition(PREFIX)[2].strip()


def _plain(prompt: str, response: str) -> Plain:
    """Question and letter alone: the prompt ends in `Answer:`."""
    return Plain(prompt, response.removeprefix(PREFIX))


def _shown(example: Example, shots: Sequence[Example]) -> Example:
    """The subject's header once, the worked examples with their letters, and the question."""
    if not shots:
        return example
    head, _, question = example.prompt.partition("\n\n")
    worked = [f"{shot.prompt.partition(SEPARATOR)[2]} {shot.answer}" for shot in shots]
    asked = replace(example, prompt=SEPARATOR.join([head, *worked, question]))
    return replace(asked, plain=_plain(asked.prompt, asked.response))


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
    prompt, response = f"{head}{question}\n{listed}\nAnswer:", f"{PREFIX} {LETTERS[answer]}"
    return Example(
        id=where,
        prompt=prompt,
        response=response,
        answer=LETTERS[answer],
        unit=subject,
        choices=LETTERS,
        plain=_plain(prompt, response),
    )


MMLU = Format(
    "mmlu",
    PREFIX,
    _mmlu_answer,
    _mmlu_test,
    grade_choice,
    ranks=True,
    choices=LETTERS,
    shown=_shown,
    shots_of_unit=True,
    shots_room=SHOTS_ROOM,
    plain=_plain,
    version=2,
)
