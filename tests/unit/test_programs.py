"""Outputs become the programs that are graded: plain ones as they stand, others as the code that is in them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pkt.tasks.base import Example
from pkt.tasks.programs import completed, program

HEADER = 'from typing import List\n\n\ndef total(xs: List[int]) -> int:\n    """Sum.\n    >>> total([1, 2])\n    3\n    """\n'
BODY = "    found = 0\n    for x in xs:\n        found += x\n    return found\n"
WHOLE = "def total(xs):\n    return sum(xs)\n"
HELPED = "def one(x):\n    return x\n\n\ndef total(xs):\n    return sum(map(one, xs))\n"


def item(header: str = "") -> Example:
    return Example("e", "q", "", "", "e", header=header, tests="assert total([1, 2]) == 3")


def total(text: str) -> object:
    """What the program's function computes. These texts are ours, so they are simply run."""
    names: dict = {}
    exec(text, names)
    return names["total"]([3, 4, 5])


@pytest.mark.parametrize(
    "output",
    [
        BODY,
        f"\n{BODY}",
        f"{BODY}\n\nprint(total([1]))\n",
        f"{BODY}\n\ndef other(x):\n    return x\n",
        f"{BODY}\n\nif __name__ == '__main__':\n    total([1])\n",
        WHOLE,
        HELPED,
        "    return total2(xs)\n\n\ndef total2(xs):\n    return sum(xs)\n",
        "    return '```'\n",
        "",
        "OK\n",
    ],
)
def test_plain_continuations_stand_as_the_protocol_has_them(output: str) -> None:
    assert completed(item(HEADER), output) == HEADER + output
    assert program(item(HEADER), output) == f"{HEADER}{output}\nassert total([1, 2]) == 3"


@pytest.mark.parametrize("output", [WHOLE, HELPED, "total = sum", f"import math\n{WHOLE}x = total([1])\n", "hello"])
def test_whole_functions_stand_too(output: str) -> None:
    assert completed(item(), output) == output


@pytest.mark.parametrize(
    ("output", "code"),
    [
        pytest.param(f"{BODY}```", BODY, id="closing fence"),
        pytest.param(f"{BODY}```\nThis adds up.\n", BODY, id="prose behind the fence"),
        pytest.param(f"{BODY}```\n\n```python\nprint(total([1, 2]))\n```", BODY, id="second fence"),
        pytest.param(f"{BODY}\nThis function adds up.\n", f"{BODY}\n", id="prose behind the code"),
        pytest.param(f"{BODY}\nIt's a sum, isn't it?\n", f"{BODY}\n", id="an apostrophe"),
        pytest.param(f"{BODY}\n\ndef test():\n    assert total([", f"{BODY}\n\n", id="cut in a second function"),
        pytest.param(f"```python\n{WHOLE}```", WHOLE, id="fenced again"),
        pytest.param(f"```\n{WHOLE}", WHOLE, id="fenced again, missing closing fence"),
        pytest.param(f"```python\n{BODY}```", BODY, id="fenced body"),
        pytest.param(f"Sure! Here it is:\n\n```python\n{WHOLE}```\nDone.", WHOLE, id="prose around a fence"),
        pytest.param(f"OK\n```python\n{WHOLE}```", WHOLE, id="prose that is Python"),
        pytest.param(f"Here it is:\n\n{WHOLE}", WHOLE, id="prose before"),
        pytest.param(f"Here it is:\n\n{HELPED}\nThat is all.", f"{HELPED}\n", id="prose around several functions"),
        pytest.param(f" {BODY.lstrip()}", BODY, id="lost indentation"),
        pytest.param(BODY.lstrip(), BODY, id="no indentation"),
        pytest.param(BODY.replace("\n", "\r\n"), BODY, id="carriage returns"),
        pytest.param(f"{BODY}```".replace("\n", "\r\n"), BODY, id="carriage returns and a fence"),
    ],
)
def test_code_is_found_behind_a_header(output: str, code: str) -> None:
    found = completed(item(HEADER), output)
    assert found == HEADER + code
    assert total(found) == 12


@pytest.mark.parametrize(
    ("output", "code"),
    [
        pytest.param(f"{WHOLE}```", WHOLE, id="closing fence"),
        pytest.param(f"{WHOLE}```\nIt's a sum.\n```python\ntotal([1])\n```", WHOLE, id="second fence"),
        pytest.param(f"Sure:\n```python\n{HELPED}```", HELPED, id="several functions in a fence"),
        pytest.param(
            "```python\ndef one(x):\n    return x\n```\nand\n```python\ndef total(xs):\n    return sum(map(one, xs))\n```",
            "def one(x):\n    return x\ndef total(xs):\n    return sum(map(one, xs))\n",
            id="two fences that need each other",
        ),
        pytest.param(
            f"```python\nimport os\n```\n```python\n{WHOLE}", f"import os\n{WHOLE}", id="imports by themselves"
        ),
        pytest.param(f"```\n1 2 3\n```\n```python\n{WHOLE}```", WHOLE, id="a block that is no code"),
        pytest.param(f"```python\nother = 1\n```\n{WHOLE}", f"other = 1\n{WHOLE}", id="outside a fence"),
        pytest.param(f"{WHOLE}\nThis adds\n{WHOLE}", f"{WHOLE}\n", id="twice"),
        pytest.param(f"{WHOLE}\u2028```", WHOLE, id="what is no line break"),
    ],
)
def test_code_is_found_without_a_header(output: str, code: str) -> None:
    found = completed(item(), output)
    assert found == code
    assert total(found) == 12


@pytest.mark.parametrize(
    "output",
    [
        pytest.param("    if xs:\n        return sum(xs)\n    return 3 +* 4\n", id="a fault in the function"),
        pytest.param("    return sum(xs", id="cut in the function"),
        pytest.param('    """\n    return 1\n', id="an open string"),
        pytest.param("I do not know.", id="prose alone"),
        pytest.param("return \0", id="a null byte"),
        pytest.param("(" * 5000, id="too deep"),
        pytest.param("```\nI do not know.\n```", id="prose in a fence"),
        pytest.param("x = '\n" * 10000, id="long"),
    ],
)
@pytest.mark.parametrize("header", [HEADER, ""])
def test_what_holds_no_code_stays_and_fails(output: str, header: str) -> None:
    found = completed(item(header), output)
    assert found == header + output
    with pytest.raises((SyntaxError, ValueError, MemoryError)):
        compile(found, "program", "exec")


@given(st.text(alphabet="ab:()=' \n`#\t\r", max_size=60) | st.text(max_size=40), st.sampled_from([HEADER, ""]))
def test_any_text_becomes_a_program(output: str, header: str) -> None:
    found = completed(item(header), output)
    assert found.startswith(header)
    plain = header + output.replace("\r\n", "\n").replace("\r", "\n")
    try:
        compile(plain, "program", "exec")
    except (SyntaxError, ValueError, MemoryError):
        return
    assert found == plain
