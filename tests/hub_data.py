"""Small data sets with the hub's columns, in folders that `datasets` reads as it reads the hub."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import datasets
import pytest

from pkt.tasks import hub

SUBJECTS = hub.HUB["math"].configs
LEVELS = ("Level 1", "Level 5")


def gsm8k_rows(start: int, count: int) -> list[dict]:
    return [
        {"question": f"What is {i} and {i}?", "answer": f"It is <<{i}+{i}={2 * i}>>{2 * i}.\n#### {2 * i:,}"}
        for i in range(start, start + count)
    ]


def mmlu_rows(start: int, count: int, subject: str = "astronomy") -> list[dict]:
    return [
        {
            "question": f"Which star is number {i}?",
            "subject": subject,
            "choices": [f"S{i}", "None", "c", "d"],
            "answer": i % 4,
        }
        for i in range(start, start + count)
    ]


def mbpp_rows(*ranges: range) -> list[dict]:
    return [
        {
            "task_id": i,
            "text": f"Write a function to add {i} to a number.",
            "code": f"def add_{i}(x):\r\n  return x + {i}",
            "test_list": [f"assert add_{i}(1) == {i + 1}"],
            "test_setup_code": "",
            "challenge_test_list": [],
        }
        for part in ranges
        for i in part
    ]


def mbpp_plus_rows(count: int = 378) -> list[dict]:
    return [
        {
            "task_id": 2 * i + 2,
            "code": f"\ndef plus_{i}(x):\n    return x * {i}",
            "prompt": f"Write a function to multiply by {i}.",
            "source_file": "a",
            "test_imports": [],
            "test_list": [f"assert plus_{i}(1) == {i}"],
            "test": f"assert plus_{i}(2) == {2 * i}",
        }
        for i in range(count)
    ]


def humaneval_rows(count: int) -> list[dict]:
    return [
        {
            "task_id": f"HumanEval/{i}",
            "prompt": f'def f{i}(x):\n    """Return x plus {i}."""\n',
            "canonical_solution": f"    return x + {i}\n",
            "test": "def check(candidate):\n    assert candidate(1)\n",
            "entry_point": f"f{i}",
        }
        for i in range(count)
    ]


def pack_rows(count: int) -> list[dict]:
    return [{"task_id": f"Python/{i}", "instruction": f"Write `f{i}`, which adds {i}."} for i in range(count)]


def math_rows(subject: str, start: int, count: int) -> list[dict]:
    return [
        {
            "problem": f"In {subject}: what is ${i}+1$?",
            "level": LEVELS[i % 2],
            "type": subject.replace("_", " ").title(),
            "solution": f"Add: $\\boxed{{{i + 1}}}$.",
        }
        for i in range(start, start + count)
    ]


def make(folder: Path, configs: dict[str, dict[str, list[dict]]]) -> str:
    """A data set with configurations and splits, as a repository on the hub has them."""
    card = ["---", "configs:"]
    for config, splits in configs.items():
        card += [f"- config_name: {config}", "  data_files:"]
        for split, rows in splits.items():
            path = folder / config / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            card += [f"  - split: {split}", f"    path: {config}/{split}.jsonl"]
    (folder / "README.md").write_text("\n".join([*card, "---", ""]), encoding="utf-8")
    return str(folder)


def serve(patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let every task's data set be a small one that lies here."""
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    sets = {
        "gsm8k": {"main": {"train": gsm8k_rows(0, 40), "test": gsm8k_rows(35, 20)}},
        "mmlu": {
            "all": {
                "dev": mmlu_rows(0, 5),
                "validation": [*mmlu_rows(3, 20), *mmlu_rows(0, 20, "virology"), LOST],
                "test": mmlu_rows(20, 9),
            }
        },
        "humaneval": {"default": {"test": humaneval_rows(3)}},
        "mbpp": {
            "full": {
                "train": mbpp_rows(range(601, 641)),
                "validation": mbpp_rows(range(511, 517)),
                "test": mbpp_rows(range(11, 21)),
            }
        },
        "mbpp_plus": {"default": {"test": mbpp_plus_rows()}},
        "math": {s: {"train": math_rows(s, 0, 6), "test": math_rows(s, 6, 2)} for s in SUBJECTS},
    }
    for name, configs in sets.items():
        path = make(tmp_path / "hub" / name, configs)
        patch.setitem(hub.HUB, name, replace(hub.HUB[name], path=path))
    pack = make(tmp_path / "hub" / "pack", {"python": {"test": pack_rows(3)}})
    patch.setattr(hub, "INSTRUCTIONS", replace(hub.INSTRUCTIONS, path=pack))


LOST = {"question": "Which one?", "subject": "virology", "choices": ["a", "b", "nan", "d"], "answer": 0}
