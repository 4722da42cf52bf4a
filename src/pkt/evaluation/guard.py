"""The text on which perplexity guards against harm."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pkt.errors import DataError


def guard_text(path: str | None, *, is_nano: bool) -> str | None:
    """The text of a file, or neutral sentences of the nano world for its tasks, or none.

    Raises:
        DataError: no such file, or it is not UTF-8, or empty.
    """
    if path:
        if not Path(path).is_file():
            raise DataError(f"evaluate.perplexity_text: no file {path}")
        try:
            text = Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError as e:
            raise DataError(f"evaluate.perplexity_text: {path} is not UTF-8 (byte {e.start}); convert it") from None
        if not text.strip():
            raise DataError(f"evaluate.perplexity_text: {path} is empty; give a text, or leave it out")
        return text
    if is_nano:
        from pkt.nano.world import neutral_lines

        return "\n".join(neutral_lines("guard", 400))
    return None


def text_digest(text: str | None) -> str | None:
    """Hash of a text, if there is one."""
    return hashlib.sha256(text.encode()).hexdigest() if text else None
