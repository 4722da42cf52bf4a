"""The evaluator agrees with Python on what it allows, and refuses the rest quickly and quietly."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pkt.tasks.arithmetic import POINTS, same_function


def function(expression: str) -> str:
    return f"def f(x):\n    return {expression}"


def expressions() -> st.SearchStrategy[str]:
    leaf = st.one_of(st.just("x"), st.integers(0, 99).map(str))

    def grow(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        binary = st.tuples(inner, st.sampled_from(["+", "-", "*", "//", "%"]), inner).map(" ".join)
        return st.one_of(
            binary,
            binary.map("({})".format),
            inner.map("-{}".format),
            st.tuples(inner, st.integers(0, 3)).map("({0[0]}) ** {0[1]}".format),
        )

    return st.recursive(leaf, grow, max_leaves=6)


def by_python(expression: str) -> list[int | None]:
    values: list[int | None] = []
    for x in POINTS:
        try:
            values.append(eval(expression, {"__builtins__": {}}, {"x": x}))
        except ZeroDivisionError:
            values.append(None)
    return values


@settings(max_examples=300, deadline=None)
@given(expressions(), expressions())
def test_it_agrees_with_python(one: str, two: str) -> None:
    values = by_python(one)
    if all(v is None or abs(v) < 2**1000 for v in values):
        assert same_function(function(one), function(one))
        assert same_function(function(one), function(two)) == (values == by_python(two))


def test_the_points_tell_apart_what_is_easily_confused() -> None:
    assert {x < 0 for x in POINTS} == {True, False}
    assert 0 in POINTS
    assert max(map(abs, POINTS)) > 10_000
    for other in ("x - 3 + 2", "2 * x", "x + 3", "x * 2 + 0 * x + 1", "x // 2", "x % 2", "x ** 2"):
        assert not same_function(function(other), function("x + 2")), other
    assert not same_function(function("-(x // 2)"), function("-x // 2"))


@pytest.mark.parametrize(
    "found",
    [
        "def f(x):\n    return 3 + x * 4",
        "def f(x):\n    return 4 * x + 3\n```",
        "def f(x):\n    return 4 * x + 3\n```\nThis function multiplies.",
        "def f(x):\n    return 4 * x + 3\n\nThis function multiplies x by 4.",
        "\ndef f(x):\n    return 4 * x + 3\n  \n\nprint(f(2))\n",
        'def f(x):\n    """Times 4.\n\n    And 3."""\n\n    return 4 * x + 3\n',
        "def f(y): return 3 + y * (5 - 1)",
        "def f(x):\r\n    return 3 + x * 4\r\n",
        "def f(x: int) -> int:\n    return +3 - -x * 4",
    ],
)
def test_accepted_texts(found: str) -> None:
    assert same_function(found, function("3 + x * 4"))


HOSTILE = [
    "",
    "   ",
    "def f(x):",
    "def f(x):\n    return",
    function("9 ** 9 ** 9"),
    function("x ** x ** x ** x"),
    function("((((x ** 64) ** 64) ** 64) ** 64) ** 64"),
    function("2 ** -1"),
    function("'a' * 10 ** 9"),
    function("(0,) * 10 ** 9"),
    function("1.5 * x"),
    function("1j * x"),
    function("True + x"),
    function("x / 2"),
    function("1 << 10 ** 9"),
    function("~x"),
    function("x if x else 1"),
    function("x and 1"),
    function("[y for y in range(10 ** 12)][0]"),
    function("(lambda: x)()"),
    function("(x := 3)"),
    function("y"),
    function("__import__('os').getpid()"),
    function("().__class__.__base__.__subclasses__()"),
    function("x.real"),
    function("x.__class__"),
    function("f(x)"),
    function("int('9' * 10 ** 6)"),
    function("1 // 0"),
    function("9" * 1900),
    function("+".join("x" for _ in range(900))),
    function("(" * 900 + "x" + ")" * 900),
    function("-" * 1900 + "x"),
    function("~" * 1900 + "x"),
    function("x" + ".a" * 900),
    function("x" * 1_000_000),
    "(" * 1_000_000,
    "\n" * 1_000_000,
    "```" * 300_000,
    "import os\n\ndef f(x):\n    return x + 2",
    "import os\ndef f(x):\n    return x + 2",
    "def f(x):\n    import os\n    return x + 2",
    "def f(x):\n    return x + 2\ndef g(x):\n    return x",
    "def f(x):\n    while True: pass\n    return x + 2",
    "@staticmethod\ndef f(x):\n    return x + 2",
    "async def f(x):\n    return x + 2",
    "def f(x, y=print()):\n    return x + 2",
    "def f(*x):\n    return x + 2",
    "def f(x, /):\n    return x + 2",
    "class f:\n    x = 1",
    "f = lambda x: x + 2",
    "def f(x):\n    return x + 2\x00",
    "def f(x):\n    return '\ud800'",
    "def f(x):\n    '\\d'\n    yield x",
    "def f(x):\n    return 1is x",
]


@pytest.mark.parametrize(
    "text", HOSTILE, ids=[f"{i}: {t[:40]!r}".encode("ascii", "replace").decode() for i, t in enumerate(HOSTILE)]
)
def test_hostile_texts_are_refused_at_once(text: str) -> None:
    start = time.perf_counter()
    assert not same_function(text, function("x + 2"))
    assert time.perf_counter() - start < 1


def test_a_function_that_cannot_be_judged_equals_nothing() -> None:
    for text in (function("9 ** 9 ** 9"), function("x.real"), ""):
        assert not same_function(text, text)


def test_docstrings_with_odd_escapes_are_no_warning() -> None:
    assert same_function("def f(x):\n    '\\d'\n    return x + 2", function("2 + x"))


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_no_text_raises(text: str) -> None:
    same_function(text, text)
    same_function(function(text), function("x"))
