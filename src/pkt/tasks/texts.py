"""What of an item is compared with others, by its task's format.

| task | compared |
| --- | --- |
| GSM8K, MATH | the question |
| MMLU | question and choices, without the subject; the question alone is compared too, but makes no two items the same |
| HumanEval | prompt, docstring, and solution, looked for inside a row's whole text |
| MBPP, MBPP+ | description, code, task id |
"""

from __future__ import annotations

import ast
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pkt.tasks.base import Example

QUESTION, ITEM, CODE, NUMBER = "question", "question and choices", "code", "task id"
PROMPT, DOCSTRING, SOLUTION = "prompt", "docstring", "solution"
SAME = {"mmlu": (ITEM,)}
"""Names of the texts of which one alone makes two items the same; those that are not named here: any."""
SHORTEST = 40
"""A text that is looked for inside others has at least so many letters and digits: `return x + y` is no copy."""


@dataclass(frozen=True)
class Texts:
    """What is compared of one item."""

    id: str
    named: Mapping[str, str]
    """Texts that are equal where the item is the same."""
    whole: str
    """All of the item, in which others may be contained."""
    inside: Mapping[str, str] = field(default_factory=dict)
    """Texts of a test item that are looked for inside rows."""


def normalised(text: str) -> str:
    """NFKD, lower case, a-z and 0-9 alone."""
    return re.sub(r"[^a-z0-9]+", "", unicodedata.normalize("NFKD", text).lower())


def compared_texts(name: str, example: Example) -> Texts:
    """What is compared of an example of task `name`, a row of a split or a test item."""
    prompt, answer = (text.replace("\r\n", "\n") for text in (example.prompt, example.answer))
    whole = f"{prompt}\n{example.response}".replace("\r\n", "\n")
    named, inside = _PARTS[name](prompt, answer)
    if number := re.fullmatch(r"(?i:mbpp)(?:_plus)?[/_](\d+)", example.id):
        named[NUMBER] = number[1]
    return Texts(example.id, {what: text.strip() for what, text in named.items() if text.strip()}, whole, inside)


Parts = tuple[dict[str, str], dict[str, str]]


def _word_problem(prompt: str, _answer: str) -> Parts:
    return {QUESTION: re.split(r"\n(?:Question|Problem):\s", prompt, maxsplit=1)[-1]}, {}


def _mmlu(prompt: str, _answer: str) -> Parts:
    head = r"The following are multiple choice questions \(with answers\) about [^\n]*\.\n\n"
    item = re.sub(r"\nAnswer:$", "", re.sub(f"^{head}", "", prompt))
    parts = re.match(r"(.*)\nA\. .*\nB\. .*\nC\. .*\nD\. ", item, re.DOTALL)
    return {ITEM: item, QUESTION: parts[1] if parts else item}, {}


def _humaneval(prompt: str, answer: str) -> Parts:
    return {QUESTION: prompt}, _parts_of_function(answer)


def _mbpp(prompt: str, answer: str) -> Parts:
    text = prompt.removeprefix("Complete the following python function.").strip()
    header = answer.strip().split(":", 1)[0].strip()
    return {QUESTION: text.removesuffix(header), CODE: answer}, {}


_PARTS: dict[str, Callable[[str, str], Parts]] = {
    "gsm8k": _word_problem,
    "math": _word_problem,
    "mmlu": _mmlu,
    "humaneval": _humaneval,
    "mbpp": _mbpp,
    "mbpp_plus": _mbpp,
}


def _parts_of_function(code: str) -> dict[str, str]:
    """Prompt, docstring and solution of a program whose last documented function is asked for; nothing of other texts."""
    try:
        body = ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    asked = [n for n in body if isinstance(n, ast.FunctionDef) and ast.get_docstring(n) and len(n.body) > 1]
    if not asked:
        return {}
    lines, first = code.split("\n"), asked[-1].body[0]
    end = first.end_lineno or 0
    parts = {
        PROMPT: "\n".join(lines[:end]),
        DOCSTRING: ast.get_docstring(asked[-1], clean=False) or "",
        SOLUTION: "\n".join(lines[end : asked[-1].end_lineno]),
    }
    return {name: text.strip() for name, text in parts.items() if len(normalised(text)) >= SHORTEST}
