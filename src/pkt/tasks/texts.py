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
SHORTEST = 20
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
    named = _PARTS[name](prompt, answer)
    if number := re.fullmatch(r"(?i:mbpp)(?:_plus)?[/_](\d+)", example.id):
        named[NUMBER] = number[1]
    named = {what: text.strip() for what, text in named.items() if text.strip()}
    inside = _inside(answer, example.header.replace("\r\n", "\n")) if name == "humaneval" else {}
    return Texts(example.id, named, whole, inside)


def _word_problem(prompt: str, _answer: str) -> dict[str, str]:
    return {QUESTION: re.split(r"\n(?:Question|Problem):\s", prompt, maxsplit=1)[-1]}


def _mmlu(prompt: str, _answer: str) -> dict[str, str]:
    head = r"The following are multiple choice questions \(with answers\) about [^\n]*\.\n\n"
    item = re.sub(r"\nAnswer:$", "", re.sub(f"^{head}", "", prompt))
    parts = re.match(r"(.*)\nA\. .*\nB\. .*\nC\. .*\nD\. ", item, re.DOTALL)
    return {ITEM: item, QUESTION: parts[1] if parts else item}


def _humaneval(prompt: str, _answer: str) -> dict[str, str]:
    return {QUESTION: prompt}


def _mbpp(prompt: str, answer: str) -> dict[str, str]:
    text = prompt.removeprefix("Complete the following python function.").strip()
    header = answer.strip().split(":", 1)[0].strip()
    return {QUESTION: text.removesuffix(header), CODE: answer}


_PARTS: dict[str, Callable[[str, str], dict[str, str]]] = {
    "gsm8k": _word_problem,
    "math": _word_problem,
    "mmlu": _mmlu,
    "humaneval": _humaneval,
    "mbpp": _mbpp,
    "mbpp_plus": _mbpp,
}


def _inside(code: str, header: str) -> dict[str, str]:
    """Prompt, solution and docstring of a HumanEval item, for the program's text and the prompt at its start."""
    parts = {PROMPT: header, SOLUTION: code.removeprefix(header), DOCSTRING: _docstring(code)} if header else {}
    return {name: text.strip() for name, text in parts.items() if len(normalised(text)) >= SHORTEST}


def _docstring(code: str) -> str:
    """Of the last function that has one: helpers stand before it."""
    try:
        functions = [node for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
    return next((text for node in reversed(functions) if (text := ast.get_docstring(node, clean=False))), "")
