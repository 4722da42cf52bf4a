"""The table of a sweep as CSV and for a terminal, and its page. Self-contained: no script, nothing loaded from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pkt.files import csv_text, write_text
from pkt.report.comparison import cost
from pkt.report.html import templates
from pkt.report.numbers import plus_minus
from pkt.report.sweep import figures
from pkt.report.sweep_plot import named
from pkt.report.sweep_words import OPTIMISTIC, change
from pkt.report.table import tier_order
from pkt.report.verdict import VERDICTS

if TYPE_CHECKING:
    from rich.table import Table

Row = Mapping[str, Any]
FAILED = "failed: "
COSTS = {
    "labels": "labels read",
    "trained_parameters": "trained parameters",
    "steps": "steps",
    "flop": "FLOP",
    "seconds": "seconds",
    "peak_memory_gib": "peak memory (GiB)",
}


def write(folder: Path) -> Path:
    """Write `sweep.csv` and `sweep.html` from `sweep.json` and `costs.json`; returns the page's path."""
    sweep, costs = (json.loads((folder / name).read_text(encoding="utf-8")) for name in ("sweep.json", "costs.json"))
    write_text(folder / "sweep.csv", csv_text([plain(row, sweep) for row in sweep["points"]]))
    write_text(folder / "sweep.html", page(sweep, costs))
    return folder / "sweep.html"


def page(sweep: Row, costs: list[Row]) -> str:
    """The page. The same content gives the same text."""
    heads, rows = cells(sweep)
    return (
        templates()
        .get_template("sweep.html.j2")
        .render(
            sweep=sweep,
            title=sweep["question"] or f"Sweep of {', '.join(sweep['recipes'])}",
            pictures=figures(sweep),
            heads=heads,
            rows=rows,
            costs=_costs(sweep, costs),
            cost_heads=COSTS,
            optimistic=OPTIMISTIC,
            named=named,
        )
    )


def tiers(sweep: Row) -> list[str]:
    """All tiers, that which decides first."""
    decides = list(dict.fromkeys(group["tier"] for group in sweep["groups"]))
    return [*decides, *(t for t in tier_order(t for row in sweep["points"] for t in row["scores"]) if t not in decides)]


def cells(sweep: Row) -> tuple[list[str], list[list[str]]]:
    """The table as people read it: heads, and one row per point."""
    names = tiers(sweep)
    extra = ["verdict", "gain over the best arm without the source"] if sweep["certified"] else []
    heads = ["setting", *names[:1], "change", "valid loss", *extra, *names[1:]]
    rows = []
    for row in sweep["points"]:
        if row["error"] is not None:
            rows.append([row["point"], f"{FAILED}{row['error']}", *[""] * (len(heads) - 2)])
            continue
        levels = {t: plus_minus(found["score"], found["standard_error"]) for t, found in row["scores"].items()}
        loss = row["valid_loss"]
        certified = [_verdict(row), change(row["gain"])] if sweep["certified"] else []
        shown = [change(row["change"]), "–" if loss is None else f"{loss['mean']:.4f}", *certified]
        scores = [levels.get(t, "–") for t in names]
        rows.append([row["point"], *scores[:1], *shown, *scores[1:]])
    return heads, rows


def _verdict(row: Row) -> str:
    early = ", preliminary" if row["preliminary"] else ""
    return f"{VERDICTS[row['verdict']][0]}{early}{'; harm' if row['harm'] else ''}"


def _costs(sweep: Row, costs: list[Row]) -> list[list[str]]:
    found = []
    for row, spent in zip(sweep["points"], costs, strict=True):
        held = {**spent, **{key: row[key] for key in ("labels", "trained_parameters", "steps")}}
        found.append([row["point"], *(cost(key, held[key]) for key in COSTS)])
    return found


def terminal(sweep: Row) -> list[Table]:
    """The tables for a terminal: what decides, then the other tiers."""
    heads, rows = cells(sweep)
    first = len(heads) - len(tiers(sweep)[1:])
    found = [_table(heads[:first], [row[:first] for row in rows])]
    if heads[first:]:
        done = [row for row in rows if not row[1].startswith(FAILED)]
        found.append(_table([heads[0], *heads[first:]], [[row[0], *row[first:]] for row in done]))
    return found


def _table(heads: list[str], rows: list[list[str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, header_style="bold", pad_edge=False)
    for i, head in enumerate(heads):
        shown.add_column(Text(head), justify="right" if i else "left", overflow="fold")
    for row in rows:
        # a failure's message has its own line below the table, for it is too long for a column
        shown.add_row(*(Text("failed" if cell.startswith(FAILED) else cell) for cell in row))
    return shown


def failures(sweep: Row) -> list[str]:
    """A line for every setting that failed."""
    return [f"{row['point']} failed: {row['error']}" for row in sweep["points"] if row["error"] is not None]


def plain(row: Row, sweep: Row) -> dict[str, Any]:
    """A point as plain columns: nothing where a number is not known."""
    found: dict[str, Any] = {"point": row["point"], "recipe": row["recipe"]}
    found |= {key: named(row["settings"].get(key)) for key in sweep["over"]}
    found |= {key: row[key] for key in ("folder", "method", "task", "source", "target", "tier")}
    found["seeds"] = len(row["seeds"])
    decides = row["scores"].get(row["tier"], {})
    found |= {key: decides.get(key) for key in ("num_items", "num_units")}
    for tier in tiers(sweep):
        held = row["scores"].get(tier, {})
        found |= {f"{tier}_score": held.get("score"), f"{tier}_standard_error": held.get("standard_error")}
    for role in ("target", "source"):
        held = row[f"{role}_scores"].get(row["tier"], {})
        found |= {f"{role}_score": held.get("score"), f"{role}_parameters": row[f"{role}_parameters"]}
    for name in ("change", "against_best"):
        held = row[name] or {}
        found |= {f"{name}{end}": held.get(key) for end, key in (("", "mean"), ("_low", "low"), ("_high", "high"), ("_p", "p"), ("_p_holm", "p_holm"))}  # fmt: skip
    found["valid_loss"] = (row["valid_loss"] or {}).get("mean")
    found |= {key: row[key] for key in ("labels", "trained_parameters", "steps", "verdict", "preliminary", "harm")}
    gain = row["gain"] or {}
    found |= {"gain": gain.get("mean"), **{f"gain_{key}": gain.get(key) for key in ("low", "high", "arm")}}
    return {**found, "error": row["error"]}
