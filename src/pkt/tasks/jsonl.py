"""Reading JSON lines strictly."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

from pkt.errors import DataError


def read_jsonl(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """(place, row) for every line; a place reads `file:line`, counted from 1.

    Lines end at a newline alone: a raw U+2028 or U+0085 inside a string is valid JSON and stays.

    Raises:
        DataError: no such file, an empty line, a line that is no JSON object, or one with half a surrogate pair.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected JSON lines there")
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = raw.decode("utf-8")
    except (OSError, EOFError, zlib.error) as e:
        raise DataError(f"{path}: no gzip file, or a damaged one ({e}); copy it anew") from e
    except UnicodeDecodeError as e:
        raise DataError(f"{path}: not UTF-8 (byte {e.start})") from e
    rows = []
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        if not line.strip():
            raise DataError(f"{where}: empty line; expected one JSON object per line, remove it")
        try:
            row = json.loads(line)
        except json.JSONDecodeError as e:
            raise DataError(
                f"{where}: not valid JSON ({e.msg} in column {e.colno}); expected one JSON object per line"
            ) from None
        except RecursionError:
            raise DataError(f"{where}: nested too deeply; expected one JSON object per line") from None
        if not isinstance(row, dict):
            raise DataError(f"{where}: found {type(row).__name__}, expected a JSON object")
        if "\\ud" in line.lower() and not _is_text(row):
            raise DataError(
                f"{where}: half of a surrogate pair (\\ud800 to \\udfff), which is no character; remove it, or write the character in full"
            )
        rows.append((where, row))
    return rows


def _is_text(row: dict[str, Any]) -> bool:
    """Whether all strings are Unicode text: JSON can spell half a pair, which no tokenizer and no file takes."""
    try:
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
