"""An analysis as `pkt analyze` writes it, and figures of it, without running anything."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from pkt.report.dots import Dot, dots
from pkt.report.figures import Figure
from pkt.report.heatmap import Panel, heatmaps

MODULES = ("down_proj", "up_proj", "v_proj", "o_proj")


def found(source_layers: int = 6, target_layers: int = 4) -> dict[str, Any]:
    """Similarity of every pair of layers, per module, and of a few examples."""
    draw = random.Random(0)
    pairs = [
        {"module": module, "source_layer": s, "target_layer": t, "cka": draw.uniform(0.2, 0.9), "null": 0.02}
        for module in MODULES
        for t in range(target_layers)
        for s in range(source_layers)
    ]
    means = [
        {"module": module, "value": value, "low": value - 0.1, "high": value + 0.1}
        for module, value in zip(MODULES, (0.52, 0.44, 0.38, 0.6), strict=True)
    ]
    return {
        "format": "analysis 1",
        "analysis": "representation",
        "paper": "arXiv:1905.00414",
        "recipe": "nano_tuned",
        "method": "laten",
        "task": "nano/mmlu",
        "source": "nano/source",
        "target": "nano/target",
        "seed": 0,
        "options": {"positions": 512, "permutations": 100, "against": None, "modules": ["down", "up"]},
        "sentence": "Of 16 target layers, 15 resemble some source layer more than chance would have it (mean CKA 0.49, chance 0.02).",
        "tables": {"pairs": pairs, "means": means},
        "notes": ["Positions are the last tokens of the extract split's prompts."],
    }


def figures(content: Mapping[str, Any]) -> list[Figure]:
    """A heat map per module, and the means."""
    pairs, means = content["tables"]["pairs"], content["tables"]["means"]
    panels = []
    for module in MODULES:
        of = {(row["target_layer"], row["source_layer"]): row["cka"] for row in pairs if row["module"] == module}
        rows, columns = (sorted({key[side] for key in of}) for side in (0, 1))
        best = frozenset((t, max(columns, key=lambda s: of[t, s])) for t in rows)
        values: list[list[float | None]] = [[of[t, s] for s in columns] for t in rows]
        panels.append(
            Panel(
                module, values, [str(t) for t in rows], [str(s) for s in columns], "source layer", "target layer", best
            )
        )
    words = {
        "shown": "One square per pair of layers.",
        "read": "Darker is more alike; the frame marks the source layer that resembles the target layer most.",
        "chance": "Shuffled positions give 0.02.",
        "origin": f"{content['analysis']}.json",
    }
    return [
        Figure(
            "pairs",
            "Similarity of every pair of layers",
            heatmaps(panels, "pairs", "Similarity of every pair of layers"),
            columns=["module", "source layer", "target layer", "CKA"],
            rows=[[row["module"], row["source_layer"], row["target_layer"], f"{row['cka']:.3f}"] for row in pairs],
            **words,
        ),
        Figure(
            "means",
            "Mean similarity",
            dots(
                [Dot(row["module"], row["value"], row["low"], row["high"]) for row in means],
                xlabel="mean CKA",
                references={"chance": 0.02},
                name="means",
                label="Mean similarity",
            ),
            **words,
        ),
    ]
