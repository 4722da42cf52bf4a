"""MATH: the box is found, answers are compared as mathematics, and rows become examples."""

import pytest

from pkt.errors import DataError
from pkt.tasks.base import Example
from pkt.tasks.math import MATH, last_box


def item(answer: str) -> Example:
    return Example("x", "Problem: ?", f"Solution: \\boxed{{{answer}}}", answer, "x")


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("so $\\boxed{5}$.", "5"),
        ("\\boxed{\\frac{1}{\\sqrt{2}}} done", "\\frac{1}{\\sqrt{2}}"),
        ("first \\boxed{3}, then \\boxed{4}", "4"),
        ("\\boxed 7$ is it", "7"),
        ("\\boxed 7$ no: \\boxed{8}", "8"),
        ("\\fbox{9}", "9"),
        ("\\boxed {10}", "10"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{\\left\\{x : x > 1\\right.}", "\\left\\{x : x > 1\\right."),
        ("\\boxed{1} and an open \\boxed{2", None),
        ("\\boxed{\\frac{1}{2}", None),
        ("\\boxed{}", ""),
        ("the answer is 5", None),
        ("\\boxed", None),
        ("\\boxedx{3}", None),
        ("", None),
    ],
)
def test_the_last_box(text, box):
    assert last_box(text) == box


@pytest.mark.parametrize(
    ("found", "gold"),
    [
        ("\\frac{1}{2}", "\\frac12"),
        ("\\dfrac{1}{2}", "\\tfrac{1}{2}"),
        ("1/2", "\\frac{1}{2}"),
        ("0.5", "\\frac{1}{2}"),
        (".5", "0.5"),
        ("-.5", "-0.5"),
        ("\\sqrt3", "\\sqrt{3}"),
        ("2\\sqrt 3", "2\\sqrt{3}"),
        ("( 1 , 2 )", "(1,2)"),
        ("\\left(1, \\frac{3}{4}\\right)", "(1,\\dfrac34)"),
        ("[0,\\infty)", "[0, \\infty)"),
        ("50\\%", "50"),
        ("50%", "50\\%"),
        ("90^\\circ", "90"),
        ("90^{\\circ}", "90^\\circ"),
        ("5\\text{ cm}", "5"),
        ("5 \\text{ cm}^2", "5"),
        ("12\\,\\mathrm{cm}", "12"),
        ("\\$18.90", "18.90"),
        ("\\$ 5", "5"),
        ("$5$", "5"),
        ("1,000", "1000"),
        ("10{,}000", "10,000"),
        ("10,\\!000", "10000"),
        ("1{,}000", "1000"),
        ("1\\,000", "1000"),
        ("1,\\! 000", "1000"),
        ("-1,234,567.5", "-1234567.5"),
        ("- 1,000", "-1000"),
        ("\\$ 1,000", "1000"),
        ("100,200", "100, 200"),
        ("3,125", "3, 125"),
        ("1, 000", "1,000"),
        ("\\text{Evelyn}", "Evelyn"),
        ("\\text{(C)}", "(C)"),
        ("x=5", "5"),
        ("5.", "5"),
        ("\\!3", "3"),
        ("x^2 + 2x", "x^2+2x"),
        ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix}1\\\\2\\end{pmatrix}"),
        ("\\displaystyle\\frac{3}{4}", "3/4"),
    ],
)
def test_the_same_answer_in_other_words(found, gold):
    assert MATH.grade(item(gold), f"Therefore $\\boxed{{{found}}}$.") == 1.0
    assert MATH.grade(item(found), f"\\boxed{{{gold}}}") == 1.0, "the other way round too"


@pytest.mark.parametrize(
    ("output", "gold"),
    [
        ("\\boxed{5}", "6"),
        ("\\boxed{-5}", "5"),
        ("\\boxed{\\frac{2}{1}}", "\\frac{1}{2}"),
        ("\\boxed{(2,1)}", "(1,2)"),
        ("\\boxed{(1,000)}", "1000"),
        ("\\boxed{1,2}", "12"),
        ("\\boxed{1,20}", "120"),
        ("\\boxed{100, 200}", "100200"),
        ("\\boxed{100200}", "100, 200"),
        ("\\boxed{3, 125}", "3125"),
        ("\\boxed{3125}", "3, 125"),
        ("\\boxed{1,000, 2}", "10002"),
        ("\\boxed{1, 234, 567}", "1234567"),
        ("\\boxed{1, 234,567}", "1234567"),
        ("\\boxed{100{,}200}", "100, 200"),
        ("\\boxed{100\\,200}", "100, 200"),
        ("\\boxed{[0,1)}", "(0,1)"),
        ("\\boxed{x+3}", "x-3"),
        ("\\boxed{\\sqrt{3}}", "3"),
        ("\\boxed{}", "0"),
        ("\\boxed{\\text{ cm}}", "5"),
        ("5", "5"),
        ("The answer is $5$.", "5"),
        ("\\boxed{5", "5"),
        ("\\boxed{6} or rather \\boxed{5} or \\boxed{6}", "5"),
        ("", "5"),
        ("\\boxed{\\frac}", "5"),
        ("\\boxed{\\sqrt}", "5"),
        ("\\boxed{\\text{ a}\\text{ b}}", "5"),
    ],
)
def test_another_answer(output, gold):
    assert MATH.grade(item(gold), output) == 0.0


def test_grades_have_a_version_of_their_own():
    assert MATH.version == 2, "raise it with every change of prompts or grades"


def test_a_row_of_the_test_set():
    row = {
        "problem": " What is $1+1$? ",
        "level": "Level 1",
        "type": "Algebra",
        "solution": "It is $\\boxed{\\frac{4}{2}}$.\n",
    }
    found = MATH.from_test(row, "math/test.jsonl:1")
    assert found.prompt.endswith("\n\nProblem: What is $1+1$?")
    assert found.response == "Solution: It is $\\boxed{\\frac{4}{2}}$."
    assert found.answer == "\\frac{4}{2}"
    assert found.unit == found.id == "math/test.jsonl:1", "every problem is about something of its own"
    assert MATH.grade(found, found.response) == 1.0
    again = MATH.from_messages(
        {"messages": [{"role": "user", "content": found.prompt}, {"role": "assistant", "content": found.response}]},
        found.id,
    )
    assert again == found
    with pytest.raises(DataError, match=r"here:3: field solution has no \\boxed answer"):
        MATH.from_test(row | {"solution": "It is 2."}, "here:3")
    with pytest.raises(DataError, match="no field 'problem'"):
        MATH.from_test({"solution": "\\boxed{2}"}, "here:3")
