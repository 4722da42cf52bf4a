"""What the analysis of representation similarity found, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from pkt.report.words import joined

Row = dict[str, Any]
NAMES = {"cka": "debiased CKA", "cka_biased": "biased CKA", "rsa": "RSA", "ridge": "R2 of ridge maps"}
"""Of the measures."""


def sentence(tables: Mapping[str, Sequence[Row]]) -> str:
    """Which modules are alike, how far above chance, whether the best layers are in order, and how a specialist differs."""
    leading = tables["modules"][0]["measure"]
    rows = [row for row in tables["modules"] if row["measure"] == leading and row["role"] == "source"]
    best = sorted(rows, key=lambda row: -row["mean"])
    alike = [row for row in best if row["low"] > row["null_95"]]
    values = joined([f"{row['module']} {row['mean']:.2f}" for row in best])
    text = f"Mean {NAMES[leading]} over all pairs of layers: {values}"
    chance = f"where 95 % of permutations stay below {max(row['null_95'] for row in rows):.3f}"
    if len(alike) == len(rows):
        text += f", {chance}"
    elif alike:
        text += f", {chance}; above its own chance level with the whole interval: {joined([row['module'] for row in alike])}"
    else:
        text += f", {chance}: none is above its own chance level with its whole interval"
    differences = [row for row in tables.get("differences", []) if row["measure"] == leading]
    untrained = _untrained([row for row in differences if row["less"] == "untrained"])
    return f"{text}. {untrained}{_order(tables['best'], leading)}{_specialist([r for r in differences if r['role'] == 'specialist'])}"


def _untrained(rows: Sequence[Row]) -> str:
    """Where trained weights make the source more alike than new ones."""
    if not rows:
        return ""
    more = [row for row in rows if row["low"] > 0]
    rest = [row for row in rows if row["low"] <= 0]
    if not more:
        return f"Over a source with new, untrained weights it leads by more than its interval in no module: {joined([_change(row) for row in rest])}. "
    text = f"Over a source with new, untrained weights it leads by more than its interval in {joined([_change(row) for row in more])}"
    return f"{text}, not in {joined([_change(row) for row in rest])}. " if rest else f"{text}. "


def best_layers(rows: Sequence[Row], measure: str, role: str = "source") -> dict[str, list[int]]:
    """By module the best source layer of every target layer."""
    found: dict[str, list[int]] = {}
    for row in rows:
        if row["measure"] == measure and row["role"] == role:
            found.setdefault(row["module"], []).append(row["source_layer"])
    return found


def is_in_order(layers: Sequence[int]) -> bool:
    """Whether they go deeper from each to the next."""
    return len(layers) > 1 and all(one < two for one, two in pairwise(layers))


def _order(rows: Sequence[Row], measure: str) -> str:
    found = best_layers(rows, measure)
    if all(len(layers) < 2 for layers in found.values()):
        return ""
    ordered = [module for module, layers in found.items() if is_in_order(layers)]
    rest = [f"{module} ({', '.join(map(str, layers))})" for module, layers in found.items() if module not in ordered]
    if not rest:
        return "The best-matching source layer goes deeper with every target layer, in every module."
    if not ordered:
        return f"In no module does the best-matching source layer go deeper with every target layer: {'; '.join(rest)}."
    return f"The best-matching source layer goes deeper with every target layer for {joined(ordered)}, not for {joined(rest)}."


def _specialist(found: Sequence[Row]) -> str:
    if not found:
        return ""
    kinds = {
        "more alike to the target": [row for row in found if row["low"] > 0],
        "less alike": [row for row in found if row["high"] < 0],
    }
    parts = [f"{what} in {joined([_change(row) for row in held])}" for what, held in kinds.items() if held]
    if not parts:
        largest = max(abs(row["value"]) for row in found)
        return f" The specialist differs from the source by more than its interval in no module (by {largest:.2f} at most)."
    return f" The specialist is {' and '.join(parts)} than the source."


def _change(row: Row) -> str:
    sign = "−" if row["value"] < 0 else "+"
    return f"{row['module']} ({sign}{abs(row['value']):.3f})"
