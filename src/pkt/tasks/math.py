"""MATH: competition problems, graded by the last boxed answer after normalising.

1. A row's answer is the content of the last `\\boxed{...}` (or `\\fbox`) of its solution, braces inside counted.
2. An output's answer is read in the same way; without a box, or with one that is never closed, it is wrong.
3. Both are tidied (`tidied`), then compared by the rules of Hendrycks et al. 2021, as lm-eval has them.

Source: Hendrycks et al. 2021, arXiv:2103.03874. The prompt has Minerva's `Problem:` and `Solution:` (Lewkowycz et al. 2022,
appendix D), and one sentence that asks for the box, without which a model that is shown no example cannot know of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from pkt.errors import DataError
from pkt.tasks.base import Example
from pkt.tasks.format import Format, Row, field

HEAD = "Solve the following problem and put the final answer in \\boxed{}.\n\n"
PREFIX = "Solution:"
NEXT_PROBLEM = "\nProblem:"
"""Where a model that goes on with another problem is stopped."""
MAX_NEW_TOKENS = 1024

THOUSANDS = re.compile(r"-? *\d{1,3}(?:(?:,|\{,\} *|,\\! *)\d{3})+(?:\.\d+)?")
"""A whole answer that is a number with commas: in a tuple, or with a space after them, they separate."""
LAYOUT = re.compile(r"\\(?:[,;:!>]|quad\b|qquad\b|left\b|right\b|displaystyle\b)|~|\\ (?=\S)")
TEXT = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox|operatorname)\{([^{}]*)\}")
UNIT = re.compile(r"(?<=[\d})])\s*\\(?:text|textrm|mathrm|mbox)\{\s*[A-Za-z][A-Za-z .]*\}(?:\^\{?\d\}?)?$")
"""A unit after a number: centimetres, dollars, square inches."""


def last_box(text: str) -> str | None:
    """Content of the last box of a text; None where there is none, or it is not closed. `\\boxed 5` holds up to a space or `$`."""
    starts = list(re.finditer(r"\\(?:boxed|fbox)(?=\s*\{|\s+[^\s{])", text))
    if not starts:
        return None
    rest = text[starts[-1].end() :].lstrip()
    if not rest.startswith("{"):
        return re.split(r"[\s$]", rest, maxsplit=1)[0]
    depth = 0
    for i, char in enumerate(rest):
        if rest[i - 1 : i] == "\\" and i:  # an escaped brace is a sign, no bracket
            continue
        depth += (char == "{") - (char == "}")
        if depth == 0:
            return rest[1:i]
    return None


def tidied(answer: str) -> str:
    """An answer without what says nothing of its value: dollar signs, layout, units, `\\text`, commas in a number, a last full stop."""
    text = _bare(answer)
    if THOUSANDS.fullmatch(text):
        return re.sub(r"[^\d.-]", "", text)
    text = re.sub(r"\s+", " ", LAYOUT.sub("", text)).strip()
    text = TEXT.sub(r"\1", UNIT.sub("", text)).strip()
    text = re.sub(r"\\sqrt\s+(\w)", r"\\sqrt{\1}", text)
    return re.sub(r"(?<![\d.])\.(?=\d)", "0.", text)


def _bare(answer: str) -> str:
    """Without dollar and per cent signs, degrees and a last full stop."""
    text = answer.strip().strip("$").strip().rstrip(".")
    text = text.replace("\\$", "").replace("\\%", "").replace("%", "")
    return re.sub(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)", "", text).strip()


def same_answer(found: str, gold: str) -> bool:
    """Whether two answers are the same: `\\dfrac12` is `\\frac{1}{2}`, .5 is 0.5, 1,000 is 1000."""
    from lm_eval.tasks.hendrycks_math.utils import is_equiv

    one, two = tidied(found), tidied(gold)
    if one == two or is_equiv(one, two):
        return bool(one)
    bare, other = (_bare(text).replace(" ", "") for text in (found, gold))
    return bare == other and THOUSANDS.fullmatch(bare) is not None  # 100,200 may also be the list 100, 200


def grade_math(example: Example, output: str) -> float:
    """1 if the last box holds the answer."""
    found = last_box(output)
    return float(found is not None and same_answer(found, example.answer))


def _math_answer(response: str) -> str:
    return (last_box(response) or "").strip()


def _math_test(row: Row, where: str) -> Example:
    problem, solution = field(row, "problem", str, where), field(row, "solution", str, where).strip()
    answer = _math_answer(solution)
    if not answer:
        raise DataError(f"{where}: field solution has no \\boxed answer in its last {solution[-60:]!r}")
    return Example(
        id=where,
        prompt=f"{HEAD}Problem: {problem.strip()}",
        response=f"{PREFIX} {solution}",
        answer=answer,
        unit=where,
    )


def _shown(example: Example, shots: Sequence[Example]) -> Example:
    """The head once, the worked problems with their solutions, and the question, as Minerva's prompt has them."""
    worked = [f"{shot.prompt.removeprefix(HEAD)}\n{shot.response}" for shot in shots]
    return replace(example, prompt=HEAD + "\n\n".join([*worked, example.prompt.removeprefix(HEAD)]))


MATH = Format(
    "math",
    PREFIX,
    _math_answer,
    _math_test,
    grade_math,
    stop=(NEXT_PROBLEM,),
    max_new_tokens=MAX_NEW_TOKENS,
    shown=_shown,
    version=2,
)
