"""Making the data of a run and looking at its folder."""

from __future__ import annotations

import json
from pathlib import Path


def message_row(what: str, number: int) -> dict:
    """A row of a split in the published layout."""
    user = {"role": "user", "content": f"How much are {number} {what}?"}
    return {"messages": [user, {"role": "assistant", "content": f"Answer: So the answer is {number * 7}."}]}


def write_lines(path: Path, lines: list) -> None:
    """Rows as JSON lines; a text stands as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")


def make_data(folder: Path) -> Path:
    """A gsm8k task in the published layout."""
    splits = folder / "splits" / "gsm8k"
    write_lines(splits / "extract.jsonl", [message_row("flurbs", i) for i in (1, 2)])
    write_lines(splits / "align.jsonl", [message_row("zorps", i) for i in (1, 2, 3)])
    write_lines(splits / "train.jsonl", [message_row("glims", i) for i in (1, 2)])
    rows = [{"question": f"How much are {i} blicks?", "answer": f"They are. #### {i * 7}"} for i in (1, 2, 3)]
    write_lines(folder / "test" / "gsm8k" / "test.jsonl", rows)
    return folder


def weights(folder: Path) -> dict[str, bytes]:
    """What a run must repeat byte for byte."""
    kept = [folder / "delta.safetensors", folder / "scores.jsonl", *sorted((folder / "model").glob("*.safetensors"))]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


def temporaries(folder: Path) -> list[Path]:
    """Hidden files and folders: everything is written under a hidden name first."""
    return sorted(folder.rglob(".*"))
