"""The results of a run folder: `scores.jsonl`, one line per item and arm, and `perplexity.json`."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pkt.files import write_json, write_text
from pkt.stages import key_of

log = logging.getLogger(__name__)

Line = dict[str, Any]


class Scores:
    """Score lines and perplexities of all arms in one folder."""

    def __init__(self, folder: Path) -> None:
        self.lines_path, self.perplexity_path = folder / "scores.jsonl", folder / "perplexity.json"

    def lines(self) -> list[Line]:
        """The lines of `scores.jsonl`, if there are any."""
        if not self.lines_path.is_file():
            return []
        found = [json.loads(line) for line in self.lines_path.read_text(encoding="utf-8").split("\n") if line]
        if not all(isinstance(line, dict) and "arm" in line for line in found):
            raise ValueError(f"{self.lines_path} holds other things than scores")
        return found

    def perplexities(self) -> dict[str, float | None]:
        """The arms' perplexities, if there are any."""
        path = self.perplexity_path
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if not isinstance(found, dict):
            raise ValueError(f"{path} holds something else than perplexities")
        return found

    def put(self, arm: str, lines: list[Line], perplexity: float | None, arms: Sequence[str]) -> None:
        """Replace what is known of one arm."""
        self.keep(arms, [*(line for line in self.lines() if line["arm"] != arm), *lines])
        write_json(self.perplexity_path, self.perplexities() | {arm: perplexity})

    def keep(self, arms: Sequence[str], lines: list[Line] | None = None) -> None:
        """Write the lines of `arms` alone, in the order of `arms`."""
        every = self.lines() if lines is None else lines
        kept = sorted((line for line in every if line["arm"] in arms), key=lambda line: arms.index(line["arm"]))
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept)
        if not self.lines_path.is_file() or self.lines_path.read_text(encoding="utf-8") != text:
            write_text(self.lines_path, text)

    def digest(self, arm: str) -> str:
        """Hash of one arm's share of both files."""
        return key_of([line for line in self.lines() if line["arm"] == arm], self.perplexities().get(arm))

    def drop_damaged(self) -> None:
        """Remove files that cannot be read, so that they are made anew."""
        for path, read in ((self.lines_path, self.lines), (self.perplexity_path, self.perplexities)):
            try:
                read()
            except ValueError:
                log.warning("%s is damaged; made anew", path)
                path.unlink()
