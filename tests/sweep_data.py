"""Content of `sweep.json` and `costs.json` for tests of its page."""

from __future__ import annotations

import itertools
import math
from typing import Any

from pkt.certify.statistics import holm
from pkt.report.sweep_words import sentences


def make(
    over: dict[str, list[Any]],
    recipes: tuple[str, ...] = ("nano_tuned",),
    *,
    failed: tuple[int, ...] = (),
    **changes: Any,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A sweep with smooth scores over a grid; points in `failed` have a message instead."""
    settings = [dict(zip(over, values, strict=True)) for values in itertools.product(*over.values())]
    rows = [
        _row(i, recipe, setting, failed=i in failed)
        for i, (recipe, setting) in enumerate(itertools.product(recipes, settings))
    ]
    done = [row for row in rows if row["error"] is None]
    groups = []
    if done:
        best = max(done, key=lambda row: row["scores"]["new"]["score"])
        for row in done:
            mean = row["scores"]["new"]["score"] - best["scores"]["new"]["score"]
            row["against_best"] = None if row is best else _difference(mean)
        for name in ("change", "against_best"):
            known = [row[name] for row in done if row[name]]
            for one, p in zip(known, holm([one["p"] for one in known]), strict=True):
                one["p_holm"] = p
        names = [row["point"] for row in done]
        groups.append({"task": "nano/mmlu", "target": "nano/target", "tier": "new", "points": names, "best": best["point"], "chosen_by_valid_loss": names[0]})  # fmt: skip
    found: dict[str, Any] = {
        "format": "sweep 1", "question": "Does <it> matter?", "recipes": list(recipes), "over": over, "set": ["seed=1"], "seeds": 3,
        "certified": False, "points": rows, "failed": len(failed), "groups": groups, **changes,
    }  # fmt: skip
    costs = [{"point": row["point"], "seconds": 1.5, "flop": 1e9, "peak_memory_gib": None} for row in rows]
    return {**found, "sentences": sentences(found)}, costs


def _row(number: int, recipe: str, setting: dict[str, Any], *, failed: bool) -> dict[str, Any]:
    name = ",".join([recipe, *(f"{key.rpartition('.')[2]}={value}" for key, value in setting.items())])
    score = 0.1 + 0.05 * math.sin(number)
    level = {"standard_error": 0.02, "num_items": 30, "num_units": 10}
    row: dict[str, Any] = {
        "point": name, "recipe": recipe, "settings": setting, "folder": name, "method": "laten", "task": "nano/mmlu",
        "source": setting.get("source.name", "nano/source"), "target": "nano/target", "seeds": [0, 1, 2], "tier": "new",
        "error": "the loss is not finite" if failed else None, "chance": {"new": 0.1}, "change": _difference(score - 0.08),
        "against_best": None, "valid_loss": {"mean": 1 + 0.1 * number, "by_seed": [1 + 0.1 * number - 0.05, 1 + 0.1 * number + 0.05]},
        "labels": 100, "trained_parameters": 5000, "steps": 8, "source_parameters": 3_000_000, "target_parameters": 600_000,
        "verdict": None, "preliminary": None, "harm": None, "gain": None,
        "scores": {tier: {"score": score, "num_seeds": 3, **level} for tier in ("known", "new", "all")},
        "target_scores": {"new": {"score": 0.08, "num_seeds": 1, **level}},
        "source_scores": {"new": {"score": 1.0, "num_seeds": 1, **level}},
    }  # fmt: skip
    return {**row, "scores": {}, "change": None, "valid_loss": None, "tier": None} if failed else row


def _difference(mean: float) -> dict[str, Any]:
    return {
        "mean": mean,
        "low": mean - 0.03,
        "high": mean + 0.03,
        "p": min(1.0, math.exp(-50 * abs(mean))),
        "level": 0.95,
    }
