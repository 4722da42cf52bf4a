"""A model's output as the program that is graded. Nothing is executed here.

Where header and output compile as they stand, they are the program, as in Open-Instruct's protocol; so is the result. Where they do
not, the protocol's program is a syntax error and its score is 0 whatever the model knows; then the code is looked for:

- a fence ends a block of code, or begins one; the closing one may be missing. The block that defines what the tests name counts,
  with the definitions of the blocks before it. The protocol stops generating at a fence in some of its back ends only.
- text at the margin, before the first definition or after the last, is dropped. It is prose, or a definition cut by the limit of tokens.
- an answer whose first line has lost its indentation (tokenizers drop a leading space when they decode) gets that of the header.

A syntax error inside a function stays one. Line ends are made `\\n`, as Python reads them.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator

from pkt.tasks.base import Example

MAX_TEXT = 20_000
"""Characters; what is longer is taken as it stands."""
MAX_CUTS = 40
CODE_LINE = re.compile(r"^(?:async def|def|class|import|from|@)\b|^@", re.MULTILINE)
RETURN = re.compile(r"^\s*(?:return|yield)\b", re.MULTILINE)
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def program(example: Example, output: str) -> str:
    """The whole text that is graded: what stands before the output, its code, and the tests."""
    return f"{completed(example, output)}\n{example.tests}"


def completed(example: Example, output: str) -> str:
    """That text without the tests, which the sandbox runs by themselves after it."""
    output = output.replace("\r\n", "\n").replace("\r", "\n")
    header = example.header
    if len(output) > MAX_TEXT or _fault(header + output) is None:
        return header + output
    earlier = ""
    for block in _blocks(output):
        found = next((text for text in _readings(header, block) if _answers(example, text)), None)
        if found is not None:
            return header + earlier + found
        if block.strip() and _fault(block) is None and any(map(_is_lasting, ast.parse(block).body)):
            earlier += block
    return header + output


def _blocks(output: str) -> Iterator[str]:
    """The text between fences, what stands before the first one first: the prompt may have opened it."""
    block: list[str] = []
    for line in _lines(output):
        if line.lstrip().startswith("```"):
            yield "".join(block)
            block = []
        else:
            block.append(line)
    yield "".join(block)


def _readings(header: str, block: str) -> Iterator[str]:
    """Parts of a block that compile behind the header, the longest first."""
    yield from _cut(header, block)
    first = CODE_LINE.search(block)
    if first and first.start():
        yield from _cut(header, block[first.start() :])
    if header and RETURN.search(block):
        margin = re.findall(r"^[ \t]*(?=\S)", header, re.MULTILINE)[-1]
        yield from _cut(header, margin + block.lstrip())


def _cut(header: str, block: str) -> Iterator[str]:
    """The block, or as much of it before a line at the margin as compiles."""
    starts = [0, *(m.start() for m in re.finditer(r"(?<=\n)(?=\S)", block))]
    for _ in range(MAX_CUTS):
        line = _fault(header + block)
        if line is None:
            yield block
            return
        wrong = sum(map(len, _lines(header + block)[: line - 1])) - len(header)
        starts = [at for at in starts if 0 < at <= wrong and at < len(block)]
        if not starts:
            return
        block = block[: starts[-1]]


def _answers(example: Example, text: str) -> bool:
    """Whether code goes on with the header's function, or defines what the tests name."""
    if not text.strip():
        return False
    if example.header and text.lstrip("\n")[:1] in (" ", "\t"):
        return True
    names = [node.name for node in ast.parse(text).body if isinstance(node, _DEFINITIONS)]
    return any(re.search(rf"\b{re.escape(name)}\b", example.tests) for name in names)


def _is_lasting(statement: ast.stmt) -> bool:
    """Whether later code may need it."""
    return isinstance(statement, (*_DEFINITIONS, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign))


def _lines(text: str) -> list[str]:
    """Lines as Python counts them, with their ends."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def _fault(text: str) -> int | None:
    """The line at which a text stops being Python, from 1; None where it is."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd escapes and comparisons are the program's own affair
            compile(text, "program", "exec", dont_inherit=True)
    except SyntaxError as e:
        return e.lineno or 1
    except (ValueError, RecursionError, MemoryError):  # a null byte; too deep
        return 1
    return None
