"""Several runs side by side, for the terminal, as CSV and as one HTML page. Takes the content of `comparison.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pkt.files import csv_text
from pkt.report.numbers import interval, plus_minus, signed
from pkt.report.table import tier_order
from pkt.report.verdict import VERDICTS

if TYPE_CHECKING:
    from rich.table import Table

Row = Mapping[str, Any]
"""One of `runs`."""
COSTS = {
    "labels": "labels",
    "trained_parameters": "trained",
    "steps": "steps",
    "flop": "FLOP",
    "seconds": "seconds",
    "peak_memory_gib": "GiB",
}
SETTING = ("task", "source", "target", "tier")
GAIN = "gain over the best arm without the source"


def groups(comparison: Mapping[str, Any]) -> list[list[Row]]:
    """Runs of one task, source, target and deciding tier, in the order in which these first appear."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in comparison["runs"]:
        found.setdefault(tuple(row[key] for key in SETTING), []).append(row)
    return list(found.values())


def setting(rows: Sequence[Row]) -> str:
    """What the runs of a group share."""
    return f"{pair(rows)}, {decided(rows)}"


def pair(rows: Sequence[Row]) -> str:
    """Task and models of a group."""
    return f"{rows[0]['task']}, from {rows[0]['source']} to {rows[0]['target']}"


def decided(rows: Sequence[Row]) -> str:
    """The tier that decides, and what the best constant guess scores there."""
    tier = rows[0]["tier"]
    chance = rows[0]["chance"].get(tier)
    return f"decided by tier {tier}" if chance is None else f"decided by tier {tier} (chance {chance:.3f})"


def tiers(rows: Sequence[Row]) -> list[str]:
    """All tiers of a group."""
    return tier_order(tier for row in rows for tier in row["scores"])


def level(row: Row, tier: str) -> str:
    """A score with one standard error."""
    found = row["scores"].get(tier)
    return "–" if found is None else plus_minus(found["score"], found["standard_error"]).replace("unknown", "?")


def verdict(row: Row) -> str:
    """The verdict with its flags, or why there is none."""
    if row["verdict"] is None:
        return "no certificate" if row["state"] == "run" else row["state"]
    early = ", preliminary" if row["preliminary"] else ""
    return f"{VERDICTS[row['verdict']][0]}{early}; {row['harm_flag']}"


def gain(row: Row) -> str:
    """The source-attributable gain with its interval."""
    found = row["gain"]
    return "–" if found is None else f"{signed(found['mean'])} {interval(found['low'], found['high'])}"


def cost(name: str, value: float | None) -> str:
    """A cost as people read it."""
    if value is None:
        return "–"
    if name == "flop":
        return large(value)
    return f"{value:.1f}" if name == "seconds" else f"{value:.2f}" if name == "peak_memory_gib" else f"{value:,}"


def large(value: float) -> str:
    """Three digits and a power of ten: `8.53e10`."""
    return f"{value:.2e}".replace("e+0", "e").replace("e+", "e") if value else "0"


def sentence(comparison: Mapping[str, Any]) -> str:
    """What the runs are: transfer, tuning, harm, or without a certificate that could say."""
    runs = comparison["runs"]
    asked = [row for row in runs if row["asked"] and row["verdict"] is not None]
    silent = [row for row in runs if row not in asked]
    said = []
    for kind, what in (
        ("transfer", "certified transfer"), ("tuning", "tuning"), ("no_effect", "without effect"), ("undecided", "undecided"),
    ):  # fmt: skip
        held = [row for row in asked if row["verdict"] == kind]
        if held or (kind == "transfer" and asked):
            said.append(f"{_number(held)} {_are(held)} {what}{_names(held, runs, 6 if kind == 'transfer' else 3)}")
    harmful = [row for row in runs if row["harm"]]  # against the target: that takes no control arms
    if harmful:
        said.append(f"{len(harmful)} {'does' if len(harmful) == 1 else 'do'} harm{_names(harmful, runs, 6)}")
    if silent:
        what = (
            "has no certificate with control arms and says"
            if len(silent) == 1
            else "have no certificate with control arms and say"
        )
        said.append(f"{_number(silent)} {what} nothing of where a score came from{_names(silent, runs, 3)}")
    early = sum(bool(row["preliminary"]) for row in asked)
    verdicts = f" {early} of {len(asked)} verdicts {'is' if early == 1 else 'are'} preliminary." if early else ""
    return f"Of {len(runs)} run{'s' * (len(runs) != 1)}, {'; '.join(said)}.{verdicts}"


def _number(rows: Sequence[Row]) -> str:
    return str(len(rows) or "none")


def _are(rows: Sequence[Row]) -> str:
    return "are" if len(rows) > 1 else "is"


def _names(rows: Sequence[Row], runs: Sequence[Row], most: int) -> str:
    shown = ", ".join(_name(row, runs) for row in rows[:most])
    more = f" and {len(rows) - most} more" if len(rows) > most else ""
    return f" ({shown}{more})" if rows else ""


def _name(row: Row, runs: Sequence[Row]) -> str:
    """With the task and models that tell it from runs of the same name in other groups."""
    namesakes = [other for other in runs if other["run"] == row["run"]]
    words = {"task": "on", "source": "from", "target": "to"}
    apart = [f"{word} {row[key]}" for key, word in words.items() if any(o[key] != row[key] for o in namesakes)]
    return " ".join([row["run"], *apart])


def terminal(comparison: Mapping[str, Any], width: int) -> list[str | Table]:
    """Lines and tables for a terminal of so many columns: per group its scores, in two tables where one is too wide; then its costs."""
    from rich.console import Console
    from rich.measure import Measurement

    measuring = Console(width=10_000)
    shown: list[str | Table] = []
    for rows in groups(comparison):
        whole = _table(rows, [*_first(rows), *_tiers(rows), *_levels(rows), *_last(rows)])
        fits = Measurement.get(measuring, measuring.options, whole).maximum <= width
        narrow = [_table(rows, [*_first(rows), *_decides(rows), *_levels(rows), *_last(rows)])]
        if tiers(rows):
            narrow.append(_table(rows, [_first(rows)[0], *_tiers(rows)]))
        parts = [whole] if fits else narrow
        shown += [
            setting(rows),
            *filter(None, [mixed(rows)]),
            *parts,
            _table(rows, [*_first(rows), *_counts(rows), *_costs(rows)]),
        ]
    return shown


def mixed(rows: Sequence[Row]) -> str:
    """A warning where the runs of a group were not scored alike: on other items, or their target has other scores."""
    if len({row["items"] for row in rows} - {None}) > 1:
        return "These runs were not scored on the same items, and do not compare."
    known = [row["target_scores"].get(row["tier"]) for row in rows]
    seen = {(level["num_items"], level["score"]) for level in known if level is not None}
    return (
        "The target's scores differ: these runs were not scored on the same items, or not in one precision, and do not compare."
        if len(seen) > 1
        else ""
    )


Column = tuple[str, list[str]]


def _first(rows: Sequence[Row]) -> list[Column]:
    return [("run", [row["run"] for row in rows]), ("method", [row["method"] for row in rows])]


def counted(row: Row, what: str) -> str:
    """`num_items` or `num_seeds` of the score on the tier that decides."""
    found = row["scores"].get(row["tier"])
    return "–" if found is None else str(found[what])


def _counts(rows: Sequence[Row]) -> list[Column]:
    return [(title, [counted(row, f"num_{title}") for row in rows]) for title in ("items", "seeds")]


def _tiers(rows: Sequence[Row]) -> list[Column]:
    return [(tier, [level(row, tier).replace(" ", "") for row in rows]) for tier in tiers(rows)]


def _decides(rows: Sequence[Row]) -> list[Column]:
    tier = rows[0]["tier"]
    return [(tier, [level(row, tier).replace(" ", "") for row in rows])]


def _levels(rows: Sequence[Row]) -> list[Column]:
    return [(role, [reference(row, role) for row in rows]) for role in ("target", "source")]


def reference(row: Row, role: str) -> str:
    """The score of `target` or `source` on the tier that decides."""
    found = row[f"{role}_scores"].get(row["tier"])
    return "–" if found is None else f"{found['score']:.3f}"


def _last(rows: Sequence[Row]) -> list[Column]:
    return [("gain", [gain(row) for row in rows]), ("verdict", [verdict(row) for row in rows])]


def _costs(rows: Sequence[Row]) -> list[Column]:
    return [(title, [cost(name, row["costs"][name]) for row in rows]) for name, title in COSTS.items()]


def _table(rows: Sequence[Row], columns: Sequence[Column]) -> Table:
    from rich.table import Table
    from rich.text import Text

    texts = ("run", "method", "verdict")
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title, _ in columns:
        text = title in texts
        table.add_column(Text(title), justify="left" if text else "right", no_wrap=not text, overflow="fold")
    for i in range(len(rows)):
        table.add_row(*(Text(cells[i]) for _, cells in columns))
    return table


def as_csv(comparison: Mapping[str, Any]) -> str:
    """One line per run, plain numbers, nothing where a number is not known."""
    rows = comparison["runs"]
    names = tiers(rows)
    return csv_text([_plain(row, names) for row in rows])


def _plain(row: Row, names: Sequence[str]) -> dict[str, Any]:
    """A run as plain columns."""
    found: dict[str, Any] = {key: row[key] for key in ("run", "folder", "state", "recipe", "method", *SETTING)}
    decides = row["scores"].get(row["tier"], {})
    found |= {key: decides.get(key) for key in ("num_items", "num_units", "num_seeds")}
    for tier in names:
        found |= _numbers(tier, row["scores"].get(tier))
    for role in ("target", "source"):
        found |= _numbers(role, row[f"{role}_scores"].get(row["tier"]))
    gain_ = row["gain"] or {}
    found |= {"gain": gain_.get("mean"), **{f"gain_{key}": gain_.get(key) for key in ("low", "high", "arm")}}
    return found | {key: row[key] for key in ("level", "margin", "verdict", "preliminary", "harm")} | row["costs"]


def _numbers(name: str, found: Mapping[str, Any] | None) -> dict[str, Any]:
    held = found or {}
    return {f"{name}_score": held.get("score"), f"{name}_standard_error": held.get("standard_error")}
