"""Comparisons as `pkt compare` makes them, without running anything."""

from __future__ import annotations

import math
import random
from typing import Any

TIERS = ("known", "located", "aligned", "new", "skill", "all")
SLOPES = {"nano_tuned": 0.002, "nano_direct": -0.01, "nano_sft": 0.02, "nano_lora": 0.015, "nano_seqkd": 0.03, "nano_gkd": 0.05,
          "nano_seeking": 0.012, "nano_pissa": 0.011, "nano_random_init": 0.01, "nano_laten_sensitivity": 0.004}  # fmt: skip
BUDGETS = (16, 32, 64, 100)


def level(score: float, items: int = 300, units: int = 100, seeds: int = 3) -> dict[str, Any]:
    """A score in a tier."""
    score = min(1.0, max(0.0, score))
    error = math.sqrt(score * (1 - score) / units)
    return {"score": score, "standard_error": error, "num_items": items, "num_units": units, "num_seeds": seeds}


def row(run: str = "nano_tuned", **changes: Any) -> dict[str, Any]:
    """One certified run."""
    costs = {
        "labels": 100,
        "trained_parameters": 221184,
        "steps": 60,
        "flop": 9.3e10,
        "seconds": 3.9,
        "peak_memory_gib": 0.48,
    }
    found = {
        "folder": f"runs/{run}", "run": run, "recipe": run, "method": "laten", "options": {"name": "laten"}, "items": "a", "task": "nano/mmlu", "source": "nano/source",
        "target": "nano/target", "tier": "new", "state": "certified",
        "scores": {tier: level(0.98 if tier == "known" else 0.1) for tier in TIERS},
        "target_scores": {tier: level(0.073) for tier in TIERS}, "source_scores": {tier: level(1.0) for tier in TIERS},
        "chance": dict.fromkeys(TIERS, 0.1), "verdict": "no_effect", "preliminary": False, "harm": False, "harm_flag": "no harm",
        "asked": True, "gain": {"arm": "self_source", "mean": -0.004, "low": -0.02, "high": 0.012}, "level": 0.95,
        "margin": 0.093, "costs": costs, "files": {"scores": "arms/real_source/seed-{0,1,2}.jsonl", "verdict and gain": "certificate.json"},
    }  # fmt: skip
    found["series"] = changes.get("recipe", run)
    return found | {**changes, "costs": costs | changes.get("costs", {})}


def frontier() -> dict[str, Any]:
    """Ten recipes at four budgets, with every kind of mark."""
    draw = random.Random(0)
    rows = []
    for i, (recipe, slope) in enumerate(SLOPES.items()):
        for labels in BUDGETS:
            used = 0 if recipe == "nano_gkd" else labels
            score = 0.07 + slope * math.log2(labels) + draw.gauss(0, 0.01)
            flop = 10 ** (10 + i / 4) * labels if recipe != "nano_direct" else 0
            verdict = "transfer" if score > 0.3 else "tuning" if score > 0.15 else "no_effect"
            rows.append(
                row(f"{recipe} ({labels})", recipe=recipe, method=recipe.split("_")[1], scores={t: level(score) for t in TIERS},
                    verdict=None if recipe == "nano_pissa" else verdict, asked=recipe != "nano_pissa",
                    state="run" if recipe == "nano_pissa" else "certified", preliminary=True,
                    harm=recipe == "nano_sft" and labels == 100, harm_flag="harm" if recipe == "nano_sft" else "no harm",
                    costs={"labels": used, "flop": flop, "seconds": flop / 1e11})
            )  # fmt: skip
    return {"format": "comparison 1", "runs": rows}
