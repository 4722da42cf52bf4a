"""How the report names the starts of adapters and draws them."""

from __future__ import annotations

from collections.abc import Mapping

from pkt.report.numbers import plain
from pkt.similarity.starts import RANDOM_BLOCK, Row

STARTS = {
    "lora": "LoRA",
    "pissa": "PiSSA",
    "seeking": "Seeking",
    "seeking_coupled": "Seeking, coupled",
    "random_init": "noise",
    RANDOM_BLOCK: "random block",
}
MATRICES = STARTS | {"target": "target's weight", "seeking": "sensitive block", "seeking_coupled": "coupled block"}
"""What the curves of energy are of."""
LOOKS = {"target": 2} | {name: look for look, name in enumerate(("lora", "random_init", "pissa", "seeking_coupled", "seeking", RANDOM_BLOCK))}  # fmt: skip


def name_of(init: str) -> str:
    """A start's name on the page."""
    return STARTS.get(init, init)


def prediction(tables: Mapping[str, list[Row]], init: str, quantity: str) -> Row:
    """The row of `predictions` about a start."""
    return next(row for row in tables["predictions"] if (row["init"], row["quantity"]) == (init, quantity))


def number(value: float | None) -> str:
    """Three decimals; a dash where there is none."""
    return "–" if value is None else plain(value, 3)


def gap(value: float | None) -> str:
    """A gap between measured and predicted; a dash where nothing was measured."""
    return "–" if value is None else f"{value:.1e}"
