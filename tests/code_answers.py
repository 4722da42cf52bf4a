"""Reference solutions of the code benchmarks, and the same with one token broken."""

from __future__ import annotations

import ast
import gzip
import io
import json
import re
import tokenize
from pathlib import Path

from pkt.tasks.base import Example
from pkt.tasks.formats import FORMATS

FILES = {
    "humaneval": "humaneval/test.jsonl",
    "mbpp": "mbpp/mbpp.jsonl",
    "mbpp_plus": "mbpp/mbpp_plus.jsonl.gz",
}
COUNTS = {"humaneval": 164, "mbpp": 974, "mbpp_plus": 378}


def examples(data: Path, name: str) -> list[Example]:
    """All rows of the published file."""
    path = data / "test" / FILES[name]
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    lines = text.decode().removesuffix("\n").split("\n")
    return [FORMATS[name].from_test(json.loads(line), f"{path.name}:{i}") for i, line in enumerate(lines, 1)]


def reference(example: Example) -> str:
    """The output that the reference solution is."""
    return example.answer.removeprefix(example.header)


def broken(example: Example) -> str:
    """The reference with one token changed, so that the tested function does something else whatever it is given.

    Its first `return` becomes `yield`: every call then gives a generator. Where it returns nothing or is no `def`, its name is changed.
    """
    text = example.header + reference(example)
    tested = [
        node
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef) and re.search(rf"\b{node.name}\b", example.tests)
    ]
    if tested:
        own = [node for node in _own(tested[-1]) if isinstance(node, ast.Return) and node.value]
        if own:
            first = min(own, key=lambda node: (node.lineno, node.col_offset))
            return _replaced(text, first.lineno, first.col_offset, "return", "yield").removeprefix(example.header)
    names = [t for t in tokenize.generate_tokens(io.StringIO(reference(example)).readline) if t.type == tokenize.NAME]
    wanted = next(
        t for t in names if re.search(rf"\b{t.string}\b", example.tests) and t.string not in ("import", "from")
    )
    return _replaced(reference(example), *wanted.start, wanted.string, f"{wanted.string}_")


def _own(function: ast.FunctionDef) -> list[ast.AST]:
    """The nodes of a function without those of functions in it."""
    found: list[ast.AST] = []
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        found.append(node)
        if not isinstance(node, (ast.FunctionDef, ast.Lambda, ast.ClassDef)):
            waiting += ast.iter_child_nodes(node)
    return found


def _replaced(text: str, line: int, column: int, old: str, new: str) -> str:
    lines = text.split("\n")
    row = lines[line - 1]
    assert row[column:].startswith(old), (row, column, old)
    lines[line - 1] = row[:column] + new + row[column + len(old) :]
    return "\n".join(lines)
