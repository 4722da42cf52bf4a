"""Grading a one-expression function without running it.

The text is parsed, every node is checked against a short list, and the expression is evaluated by our own walk on fixed
integers, with bounds on length, size of numbers and exponents.
"""

from __future__ import annotations

import ast
import operator
import re
import warnings
from collections.abc import Callable

POINTS = (-1001, -97, -8, -3, -1, 0, 1, 2, 5, 7, 12, 31, 100, 999, 12345)
"""The integers on which two functions are compared."""
MAX_TEXT, MAX_NODES, MAX_BITS, MAX_EXPONENT = 2000, 100, 4096, 64

PROSE = re.compile(r"\n\s*\n(?=\S)")
"""A blank line and then text at the margin: the function has ended."""

OPERATORS: dict[type, Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
UNARY: dict[type, Callable[[int], int]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}


class _NotAllowedError(Exception):
    """The text is not a function of the small language, or leaves its bounds."""


def same_function(found: str, expected: str) -> bool:
    """Whether two texts `def name(x): return expression` compute the same on `POINTS`.

    Args:
        found: what a model wrote; a closing code fence, or a blank line with text at the margin after it, ends it.

    Returns: False for every text that is not such a function, or whose numbers leave the bounds; nothing is raised.
    """
    try:
        one, two = _parse(found), _parse(expected)
        return all(_outcome(one, x) == _outcome(two, x) for x in POINTS)
    except _NotAllowedError:
        return False


def _outcome(function: tuple[ast.expr, str], x: int) -> int | None:
    """The value at x; None where it divides by zero."""
    body, parameter = function
    try:
        return _evaluate(body, {parameter: x})
    except ZeroDivisionError:
        return None


def _parse(text: str) -> tuple[ast.expr, str]:
    """The expression that a function returns, and its parameter's name."""
    text = text.split("```", 1)[0].strip()
    if len(text) > MAX_TEXT:
        raise _NotAllowedError("too long")
    text = PROSE.split(text.replace("\r\n", "\n"), maxsplit=1)[0]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd escapes in a docstring
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
        raise _NotAllowedError("no function") from e
    if len(tree.body) != 1 or not isinstance(tree.body[0], ast.FunctionDef):
        raise _NotAllowedError("not one function")
    function = tree.body[0]
    a = function.args
    plain = len(a.args) == 1 and not (
        a.posonlyargs or a.kwonlyargs or a.vararg or a.kwarg or a.defaults or a.kw_defaults
    )
    statements = [s for s in function.body if not _is_docstring(s)]
    if not plain or function.decorator_list or len(statements) != 1 or not isinstance(statements[0], ast.Return):
        raise _NotAllowedError("not a plain function of one return")
    body = statements[0].value
    if body is None or sum(1 for _ in ast.walk(body)) > MAX_NODES:
        raise _NotAllowedError("nothing, or too much, is returned")
    return body, a.args[0].arg


def _is_docstring(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _evaluate(node: ast.expr, names: dict[str, int]) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return _bounded(node.value)
    if isinstance(node, ast.Name) and node.id in names:
        return names[node.id]
    if isinstance(node, ast.UnaryOp) and type(node.op) in UNARY:
        return UNARY[type(node.op)](_evaluate(node.operand, names))
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        left, right = _evaluate(node.left, names), _evaluate(node.right, names)
        if isinstance(node.op, ast.Pow) and not 0 <= right <= MAX_EXPONENT:
            raise _NotAllowedError("exponent out of bounds")
        return _bounded(OPERATORS[type(node.op)](left, right))
    raise _NotAllowedError(f"{type(node).__name__} is not allowed")


def _bounded(value: int) -> int:
    if value.bit_length() > MAX_BITS:
        raise _NotAllowedError("number out of bounds")
    return value
