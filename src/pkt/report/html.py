"""One self-contained HTML page from a run folder: no script, nothing loaded from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pkt.files import write_text
from pkt.report import certificate_figures, run_figures
from pkt.report.certificate import Certificate, read_certificate
from pkt.report.data import RunFolder, read
from pkt.report.numbers import interval, p_value, percent, signed
from pkt.report.parts import KINDS, asked, part_rows, pass_rows
from pkt.report.table import ARMS, SCORED, TIERS, arm_names, score_rows
from pkt.report.verdict import comparisons, level, stamp, top_sentence
from pkt.report.words import delta_totals, effort, headline, perplexity_change


def write(folder: Path) -> Path:
    """Write `report.html` into a run folder.

    Returns: its path.
    Raises: DataError when `summary.json` is missing, or it or `certificate.json` malformed.
    """
    path = folder / "report.html"
    write_text(path, render(folder))
    return path


def render(folder: Path) -> str:
    """The page. The same files give the same text.

    Raises: DataError when `summary.json` is missing, or it or `certificate.json` malformed.
    """
    run, certificate = read(folder), read_certificate(folder)
    template = templates().get_template("page.html.j2")
    return template.render(_context(run, certificate))


def templates() -> Environment:
    """The pages' templates with the filters that they use."""
    env = Environment(
        loader=PackageLoader("pkt.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {
        "percent": _or_dash(percent),
        "digits": _or_dash(lambda value: f"{value:.4g}"),
        "score": _or_dash(lambda value: f"{value:.3f}"),
        "signed": signed,
        "p_value": p_value,
        "interval": lambda row: interval(row["low"], row["high"]),
    }
    env.tests["numeral"] = lambda cell: re.match(r"[<\[]?\s?[+−-]?\.?\d|–$|None$", str(cell)) is not None
    return env


def _or_dash(show: Any) -> Any:
    return lambda value: "–" if value is None else show(value)


def _context(run: RunFolder, certificate: Certificate | None) -> dict[str, Any]:
    summary: Mapping[str, Any] = run.summary
    rows, said = score_rows(summary), headline(summary, certificate, is_whole=run.is_whole)
    delta, layers = summary.get("delta", []), _layers(summary)
    meanings = TIERS if run.is_whole else {**TIERS, "all": SCORED}
    figures = run_figures.figures(summary, layers) | (certificate_figures.figures(certificate) if certificate else {})
    return {
        "summary": summary,
        "sentence": top_sentence(certificate) if certificate else said.outcome or said.changed,
        "headline": said,
        "models": [(role, summary[role]) for role in ("source", "target")],
        "warnings": summary.get("warnings"),
        "export": summary.get("export"),
        "rows": rows,
        "arms": arm_names(summary),
        "asked": asked(summary),
        "passes": pass_rows(summary),
        "parts": {kind: part_rows(summary, kind) for kind in KINDS} if summary.get("parts") else {},
        "tiers": {row.tier: meanings[row.tier] for row in rows if row.tier in meanings},
        "perplexity": _perplexity(summary),
        "delta": delta,
        "totals": delta_totals(delta),
        "figures": figures,
        "costs": summary.get("costs", []),
        "effort": effort(summary),
        "seconds": sum(cost["seconds"] for cost in summary.get("costs", [])),
        "recipe": run.recipe,
        "environment": dict(_flat(run.environment)),
        "certificate": certificate,
        **(_certificate_words(certificate, summary) if certificate else {}),
    }


def _certificate_words(certificate: Mapping[str, Any], summary: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "stamp": stamp(certificate, summary),
        "level": level(certificate),
        "comparisons": comparisons(certificate),
        "arm_seconds": sum(arm["seconds"] or 0 for arm in certificate["arms"]),
    }


def _layers(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Kinds that have layer scores."""
    return {k: v for k, v in summary.get("layers", {}).items() if v["source_scores"] and v["target_scores"]}


def _perplexity(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """Perplexities by arm, the text's name, and the result's change relative to the target."""
    found = summary.get("perplexity") or {}
    arms = [*(arm for arm in ARMS if arm in found), *(arm for arm in found if arm not in (*ARMS, "text"))]
    values = {arm: found[arm] for arm in arms if not isinstance(found[arm], str)}
    return (
        {"values": values, "text": found.get("text"), "change": perplexity_change(summary)}
        if any(values.values())
        else None
    )


def _flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as `versions.torch: 2.13.0`."""
    pairs: list[tuple[str, str]] = []
    for key, entry in value.items():
        if isinstance(entry, dict):
            pairs += _flat(entry, f"{prefix}{key}.")
        else:
            pairs.append((f"{prefix}{key}", "–" if entry is None else str(entry)))
    return pairs
