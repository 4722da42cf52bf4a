"""Making certificates, and looking at and damaging their folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pkt.config import Recipe
from pkt.evidence import certify
from pkt.machine import Machine
from pkt.verify import verify

CONTENT: dict[str, Any] = {
    "name": "small",
    "source": "nano/source",
    "target": "nano/target",
    "task": {"name": "nano/gsm8k", "prompt_style": "plain"},
    "method": {"name": "laten", "steps": 2, "transfer_rate": 0.1, "lr": 3e-5, "init": "published"},
    "evaluate": {"limit": 4},
    "certificate": {"seeds": 2, "factors": [1.0, 10.0], "arms": ["random_source", "no_source"]},
    "dtype": "float32",
    "seed": 0,
}
ARMS = ("real_source", "random_source", "no_source")
ONE_PROCESS = Machine(device="cpu", workers=1)


def small_recipe(**changes: Any) -> Recipe:
    """A certificate that takes seconds; a section given as keys is changed, not replaced."""
    content = dict(CONTENT)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(content[key], dict)
        content[key] = {**content[key], **value} if both else value
    return Recipe.model_validate(content)


def make(folder: Path, machine: Machine = ONE_PROCESS, **changes: Any) -> dict[str, Any]:
    """Certify `small_recipe` in a folder."""
    return certify(small_recipe(**changes), folder, machine)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def edit(path: Path, change: Callable[[Any], None]) -> None:
    """Change the content of a JSON or JSONL file in place."""
    content = lines(path) if path.suffix == ".jsonl" else read(path)
    change(content)
    text = "".join(f"{json.dumps(line)}\n" for line in content) if path.suffix == ".jsonl" else json.dumps(content)
    path.write_text(text, encoding="utf-8")


def result(folder: Path) -> Any:
    """A certificate without what it cost."""
    return _without(
        read(folder / "certificate.json"), {"seconds", "delta_seconds", "peak_memory_gib", "code", "learning_rate"}
    )


def _without(value: Any, keys: set[str]) -> Any:
    if isinstance(value, dict):
        return {k: _without(v, keys) for k, v in value.items() if k not in keys}
    return [_without(v, keys) for v in value] if isinstance(value, list) else value


def times(folder: Path) -> dict[str, int]:
    """When each file of the arms was written."""
    paths = [p for p in sorted((folder / "arms").glob("*/*")) if p.is_file()]
    return {str(p.relative_to(folder / "arms")): p.stat().st_mtime_ns for p in paths}


def written(folder: Path, before: dict[str, int]) -> set[str]:
    """Files of the arms that were made since."""
    return {name for name, time in times(folder).items() if before.get(name) != time}


def failed(folder: Path) -> list[str]:
    """Names of the checks that fail."""
    return [check.name for check in verify(folder, ONE_PROCESS) if check.holds is False]
