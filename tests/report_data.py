"""Run folders as `pkt run` writes them, without running anything."""

from __future__ import annotations

import html
import json
import math
import random
import re
from pathlib import Path
from typing import Any

TIERS = {"known": (180, 60), "located": (60, 20), "aligned": (120, 40), "new": (300, 100), "skill": (180, 60)}
CHANCE = {"known": 0.111, "located": 0.167, "aligned": 0.133, "new": 0.1, "skill": 0.111, "all": 0.09}
SCORES = {
    "target": {"known": 1.0, "located": 0.033, "aligned": 0.067, "new": 0.08, "skill": 0.828, "all": 0.43},
    "source": dict.fromkeys(CHANCE, 1.0),
    "result": {"known": 0.978, "located": 0.083, "aligned": 0.25, "new": 0.083, "skill": 0.856, "all": 0.46},
}
SIZES = {"up": ("rows", 25), "down": ("columns", 25), "v": ("rows", 9), "o": ("columns", 9)}


def nano() -> dict[str, Any]:
    """The nano pair: 4 target layers of width 96, 6 source layers of width 192."""
    return _summary(4, 96, 556_512, 6, 192, 2_700_000, steps=60)


def large() -> dict[str, Any]:
    """A pair of real size: 32 target layers, 40 source layers."""
    found = _summary(32, 4096, 6_738_415_616, 40, 5120, 13_015_864_320, steps=8)
    return found | {"name": "laten_13b_7b"}


def write(folder: Path, summary: dict[str, Any]) -> Path:
    """The run folder of a summary, with a recipe and an environment."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    (folder / "recipe.yaml").write_text(
        f"name: {summary['name']}\nmethod:\n  name: laten\n  steps: 60\n", encoding="utf-8"
    )
    environment = {"device": "cpu", "gpu": None, "versions": {"pkt": "0.1.0"}, "command": "pkt run " + "long/" * 40}
    (folder / "env.json").write_text(json.dumps(environment), encoding="utf-8")
    return folder


def certificate() -> dict[str, Any]:
    """A certificate of the nano pair that says tuning."""
    rates = {"real_source": 0.031, "random_source": 0.029, "shuffled_source": 0.027, "random_neurons": 0.03}
    return {
        "format": "certificate 1", "name": "nano_tuned", "method": "laten", "task": "nano/mmlu",
        "source": {"name": "nano/source", "weights": "57" * 32},
        "target": {"name": "nano/target", "weights": "86" * 32},
        "verdict": "tuning", "preliminary": False,
        "reason": "The target improves by 0.031 [0.008, 0.054], but no more than with random_source: 0.002 [-0.011, 0.015], margin 0.093.",
        "rule": "Tuning: above zero against the target, and below the margin against at least one source arm.",
        "harm": False, "location": {"answer": "did_not_matter", "reason": "Random neurons did as well."},
        "gain": {"arm": "self_source", "mean": -0.004, "low": -0.02, "high": 0.012},
        "items": {"tier": "new", "num_items": 300, "num_units": 100},
        "seeds": [0, 1, 2, 3, 4], "selection_seed": 5, "level": 0.95, "margin": 0.093, "lead": 0.927,
        "scores": {"target": 0.073, "source": 1.0},
        "comparisons": [
            comparison("target", "target", 0.031, 0.008, 0.054, p=0.01),
            comparison("random_source", "source", 0.002, -0.011, 0.015, p=0.7, p_holm=1.0),
            comparison("random_neurons", "locator", 0.001, -0.012, 0.014, p=0.9),
            comparison("shuffled_source", "source", 0.004, -0.01, 0.018, p=0.00001, p_holm=0.4),
        ],
        "guards": [
            {"name": "known", "unit": "score", "mean": -0.03, "low": -0.06, "high": -0.001, "margin": 0.093, "p": 0.99,
             "p_holm": 1.0, "harmed": False},
            {"name": "perplexity", "unit": "nats", "mean": -0.01, "low": -0.011, "high": -0.009, "margin": 0.02, "p": 1.0,
             "p_holm": 1.0, "harmed": False},
        ],
        "needed": None,
        "arms": [
            *(_arm(name, 0.073 + gain) for name, gain in rates.items()),
            _arm("no_source", None) | {"reason": "direct trains nothing"},
        ],
        "code": {"pkt": "0.1.0", "commit": "0123456789abcdef"},
    }  # fmt: skip


def comparison(
    arm: str, kind: str, mean: float, low: float, high: float, *, p: float, p_holm: float | None = None
) -> dict[str, Any]:
    """The real source minus one arm."""
    return {"arm": arm, "kind": kind, "mean": mean, "low": low, "high": high, "df": 40.0, "p": p, "p_holm": p_holm,
            "seed_variance": 1e-4, "unit_variance": 0.01, "num_seeds": 5, "num_units": 100}  # fmt: skip


def _arm(name: str, score: float | None) -> dict[str, Any]:
    ran = score is not None
    shift = 0.01 * len(name)
    losses = [0.84 + shift, 0.78, 0.74 + shift, 0.9, None] if ran else []
    curve = [{"lr": lr, "loss": loss} for lr, loss in zip((1e-3, 3e-3, 1e-2, 3e-2, 1e-1), losses, strict=False)]
    kinds = {"real_source": "real", "random_neurons": "locator"}
    return {
        "arm": name, "kind": kinds.get(name, "source"), "what": f"what {name} is fed with", "reason": None,
        "lr": 0.003 if ran else None, "lr_from": "search" if ran else None, "curve": curve, "at_edge": False if ran else None,
        "trained_parameters": 230400 if ran else None, "score": score,
        "seed_scores": [score + 0.01 * (i - 2) for i in range(5)] if score is not None else [],
        "seconds": 45.1 if ran else 0, "peak_memory_gib": 0.7 if ran else None,
    }  # fmt: skip


def certify(folder: Path, found: dict[str, Any]) -> Path:
    """Put a certificate into a run folder."""
    (folder / "certificate.json").write_text(json.dumps(found), encoding="utf-8")
    return folder


def certified_only() -> dict[str, Any]:
    """The summary of a folder in which nothing but `pkt certify` ran."""
    kept = ("name", "task", "method", "source", "target")
    return {key: nano()[key] for key in kept} | {"scores": [], "perplexity": None, "history": [], "delta": [],
                                                 "costs": [], "warnings": []}  # fmt: skip


def words(page: str) -> str:
    """The page without figures, tags and line breaks."""
    bare = re.sub(r"<style>.*?</style>|<svg.*?</svg>", "", page, flags=re.DOTALL)
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", bare)))


def section(page: str, title: str) -> str:
    """From one h3 to the next heading."""
    return page.split(f"<h3>{title}</h3>")[1].split("<h3>")[0].split("<h2>")[0]


def set_score(summary: dict[str, Any], arm: str, tier: str, **values: Any) -> None:
    """Change one line of the scores."""
    next(row for row in summary["scores"] if (row["arm"], row["tier"]) == (arm, tier)).update(values)


def _summary(
    layers: int,
    width: int,
    parameters: int,
    source_layers: int,
    source_width: int,
    source_parameters: int,
    *,
    steps: int,
) -> dict[str, Any]:
    draw = random.Random(0)
    return {
        "name": "nano_tuned",
        "task": "nano/mmlu",
        "method": "laten",
        "source": {"name": "nano/source", "parameters": source_parameters, "num_layers": source_layers,
                   "width": source_width, "weights": "57" * 32},
        "target": {"name": "nano/target", "parameters": parameters, "num_layers": layers, "width": width,
                   "weights": "86" * 32},
        "scores": [_score(arm, tier) for arm in SCORES for tier in (*TIERS, "all")],
        "perplexity": {"result": 7.96, "source": 9.087, "target": 7.277, "text": "neutral sentences of the nano world"},
        "layers": {kind: _layers(draw, layers, source_layers) for kind in ("ffn", "attention")},
        "history": [
            {"step": i, "cross_entropy": 0.1 + 1.4 * math.exp(-i / 20) + 0.05 * draw.random(), "loss": 1.0,
             "penalty": 1e-5 * i, "lr": 3e-3, "seconds": 0.1}
            for i in range(1, steps + 1)
        ],
        "delta": [_delta(draw, layer, part, width) for layer in range(layers) for part in SIZES],
        "export": {"changed_tensors": 4 * layers, "dtype": "float32", "kept_cosine": 1.0, "kept_share": 1.0,
                   "rounded_cosine": 0.931, "target_dtype": "bfloat16"},
        "costs": [
            {"stage": name, "seconds": 6.861, "peak_memory_gib": 0.447}
            for name in ("align", "evaluate result", "evaluate source", "evaluate target", "inject", "locate")
        ],
        "warnings": ["grouped key-value heads: 36 attention neurons fall on 35 rows of v_proj"],
    }  # fmt: skip


def _score(arm: str, tier: str) -> dict[str, Any]:
    items, units = TIERS.get(tier, (840, 220))
    score = SCORES[arm][tier]
    return {
        "arm": arm,
        "tier": tier,
        "score": score,
        "standard_error": math.sqrt(score * (1 - score) / items),
        "num_items": items,
        "num_units": units,
        "seeds": 1,
        "chance": CHANCE[tier],
    }


def _layers(draw: random.Random, layers: int, source_layers: int) -> dict[str, Any]:
    scores = [draw.gauss(5, 10) for _ in range(source_layers)]
    best = sorted(sorted(range(source_layers), key=lambda i: -scores[i])[:layers])
    return {
        "source_scores": scores,
        "target_scores": [draw.gauss(2, 8) for _ in range(layers)],
        "map": [[source, target] for target, source in enumerate(best)],
    }


def _delta(draw: random.Random, layer: int, part: str, width: int) -> dict[str, Any]:
    axis, lines = SIZES[part]
    weight_norm, relative = 0.1 * math.sqrt(lines * width), 10 ** draw.uniform(-4, -0.3)
    return {"layer": layer, "part": part, "num_lines": lines, "line_axis": axis, "delta_norm": relative * weight_norm,
            "weight_norm": weight_norm, "relative_rms": relative, "delta_max": 0.3 * relative}  # fmt: skip
