"""What the report says in words, computed from the numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from pkt.report.numbers import percent
from pkt.report.table import ScoreRow, score_rows
from pkt.report.verdict import count

CAVEAT = (
    "This is no certificate of transfer. Without control arms (the same method fed with noise, or with nothing) "
    "nobody can tell knowledge that came from the source from ordinary tuning."
)
UNREAD = "This is tuning, or nothing: the method takes no knowledge from a source."
CERTIFIED = (
    "This is one run. Whether its gain came from the source is for the verdict above to say, not for these scores."
)
_LINES_OF_WIDTH = {
    "rows": {"up", "gate", "q", "k", "v"},
    "columns": {"down", "o"},
}
"""Lines that hold one entry for each dimension of the residual stream."""


@dataclass(frozen=True)
class Headline:
    """The sentences on top of the page; an empty string where there is nothing to say."""

    changed: str
    outcome: str
    verdict: str
    """up, down, none or unknown."""
    beside: str
    """Chance, the source, the other tiers, the guard: what the outcome must be read with."""
    caveat: str = CAVEAT


def headline(
    summary: Mapping[str, Any], certificate: Mapping[str, Any] | None = None, *, is_whole: bool = True
) -> Headline:
    """What was changed, what became of the score that matters most, what happened elsewhere.

    Args:
        certificate: the content of `certificate.json`, if there is one: then the caveat that there is none goes, and
            a folder that holds nothing but the certificate needs no sentence about a run.
        is_whole: whether all items of the test split were scored.
    """
    rows = score_rows(summary)
    scored = [row for row in rows if row.change]
    caveat = CAVEAT if certificate is None else CERTIFIED
    if certificate is None and summary.get("reads_source") is False:
        caveat = UNREAD
    if not scored and certificate is not None:
        changed = _changed(summary) if summary.get("delta") else ""
        return Headline(changed, "", "unknown", "", caveat if changed else "")
    if not scored:
        return Headline(_changed(summary), "Target and result have not both been scored.", "unknown", "")
    main = next((r for tier in ("new", "all") for r in scored if r.tier == tier), scored[0])
    change = main.change
    assert change is not None
    beside = [_level(main, is_whole=is_whole), _elsewhere(scored, main), _guard(summary)]
    return Headline(
        _changed(summary), _outcome(main, is_whole=is_whole), change.verdict, " ".join(s for s in beside if s), caveat
    )


def _changed(summary: Mapping[str, Any]) -> str:
    delta, name, method = summary.get("delta", []), summary["target"]["name"], summary["method"]
    if not delta:
        return f"Method {method}, from {summary['source']['name']} to {name}: no change is recorded."
    lines = changed_in_words(delta)
    layers = {row["layer"] for row in delta if row["layer"] is not None}
    where = f"in {len(layers)} layer{'s' * (len(layers) != 1)} of {name}" if layers else f"of {name}"
    share = changed_share(summary)
    weights = f" ({percent(share)} of its weights)" if share is not None else ""
    return f"Method {method} changed {lines or 'no lines'} {where}{weights}, with {summary['source']['name']} as the source{_unread(summary)}."


def _unread(summary: Mapping[str, Any]) -> str:
    return ", of whose knowledge nothing is taken" if summary.get("reads_source") is False else ""


def changed_in_words(delta: Sequence[Mapping[str, Any]]) -> str:
    """What of the target's weights is changed: rows and columns, matrices by a low rank, whole tensors."""
    counts = {axis: sum(row["num_lines"] for row in delta if row["line_axis"] == axis) for axis in ("rows", "columns")}
    found = [f"{count:,} {axis}" for axis, count in counts.items() if count]
    ranks = [row["num_lines"] for row in delta if row["line_axis"] == "rank"]
    if ranks:
        rank = f"rank {ranks[0]}" if len(set(ranks)) == 1 else f"rank {min(ranks)} to {max(ranks)}"
        found.append(f"{len(ranks)} matri{'x' if len(ranks) == 1 else 'ces'} by a change of {rank}")
    whole = sum(row["line_axis"] == "entries" for row in delta)
    if whole:
        found.append(f"{whole} whole tensor{'s' * (whole != 1)}")
    return " and ".join(found)


def changed_share(summary: Mapping[str, Any]) -> float | None:
    """Entries in changed lines over all weights of the target; None where the summary does not determine it."""
    parameters, width = summary["target"].get("parameters"), summary["target"].get("width")
    total = 0
    for row in summary.get("delta", []):
        if "num_entries" in row:
            total += row["num_entries"]
        elif width and row["part"] in _LINES_OF_WIDTH.get(row["line_axis"], ()):
            total += row["num_lines"] * width
        else:
            return None
    return total / parameters if parameters else None


def _outcome(row: ScoreRow, *, is_whole: bool) -> str:
    before, after, change = row.cells["target"], row.cells["result"], row.change
    assert change is not None
    on = "On units that no split contains (tier new)" if row.tier == "new" else _on(row, is_whole=is_whole)
    ending = {
        "up": f"up by {abs(change.value):.3f}",
        "down": f"down by {abs(change.value):.3f}",
        "none": "no visible change",
        "unknown": "with one unit alone there is no standard error, so nothing can be said",
    }[change.verdict]
    return f"{on} the score went from {before} to {after} (± one standard error): {ending}."


def _on(row: ScoreRow, *, is_whole: bool) -> str:
    if row.tier != "all":
        return f"On tier {row.tier}"
    if is_whole:
        return "On the whole test split"
    return f"On {count(row.cells['result'].num_items, 'item')} of the test split"


def _level(row: ScoreRow, *, is_whole: bool) -> str:
    said = [f"chance is {row.chance:.3f}"] if row.chance is not None else []
    if "source" in row.cells:
        said.append(f"the source scores {row.cells['source'].score:.3f}")
    return f"{_on(row, is_whole=is_whole)} {' and '.join(said)}." if said else ""


def _elsewhere(scored: list[ScoreRow], main: ScoreRow) -> str:
    """Visible changes in the other tiers, falls first: a gain must not hide harm."""
    said = []
    for verdict in ("down", "up"):
        for row in scored:
            if row is not main and row.tier != "all" and row.change and row.change.verdict == verdict:
                before, after = row.cells["target"], row.cells["result"]
                said.append(f"{verdict} on {row.tier} ({before.score:.3f} to {after.score:.3f})")
    if not said:
        others = [row for row in scored if row is not main and row.tier != "all"]
        return "No visible change on the other tiers." if others else ""
    return f"Elsewhere: {', '.join(said)}."


def perplexity_change(summary: Mapping[str, Any]) -> float | None:
    """The result's perplexity relative to the target's, minus one."""
    found = summary.get("perplexity") or {}
    before, after = (found.get(arm) for arm in ("target", "result"))
    if not isinstance(before, int | float) or not isinstance(after, int | float) or before <= 0:
        return None
    return after / before - 1


def _guard(summary: Mapping[str, Any]) -> str:
    change = perplexity_change(summary)
    if change is None:
        return ""
    word = "rose" if change > 0 else "fell" if change < 0 else "changed"
    return f"Perplexity on ordinary text {word} by {percent(abs(change))}."


def joined(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def shared_layers(layers: Mapping[str, Any]) -> str:
    """How many source layers both maps choose, beside what two random choices would share."""
    if not {"ffn", "attention"} <= layers.keys() or _layer_map(layers) == "depth":  # which makes both the same
        return ""
    ffn, attention = ({pair[0] for pair in layers[kind]["map"]} for kind in ("ffn", "attention"))
    count = max(len(layers[kind]["source_scores"]) for kind in ("ffn", "attention"))
    if not count or len(ffn) == len(attention) == count:
        return ""
    return (
        f"The two maps share {len(ffn & attention)} source layers; two random choices of {len(ffn)} and "
        f"{len(attention)} out of {count} would share {len(ffn) * len(attention) / count:.1f} on average."
    )


def paired_by(layers: Mapping[str, Any]) -> str:
    """By which map layers are paired; where they were compared, how alike the pairs are beside those of equal relative depth."""
    from pkt.extract.layers import LAYER_MAPS

    name = _layer_map(layers)
    said = [f"Layer map {name}{f': {LAYER_MAPS[name]}' if name in LAYER_MAPS else ''}."]
    for kind in sorted(layers, reverse=True):  # the FFN first, as in the figure
        chosen, level = (layers[kind].get(key) for key in ("similarity", "similarity_at_depth"))
        if chosen and level:
            said.append(
                f"Mean debiased CKA of the {kind} pairs {fmean(chosen):.3f}, of pairs of equal relative depth {fmean(level):.3f}."
            )
    return " ".join(said)


def _layer_map(layers: Mapping[str, Any]) -> str:
    return next((part["layer_map"] for part in layers.values() if "layer_map" in part), "top_scores")


def delta_totals(delta: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The change per module, summed over layers."""
    rows = []
    for part in dict.fromkeys(row["part"] for row in delta):
        of = [row for row in delta if row["part"] == part]
        weights = [row.get("weight_norm") for row in of]
        norm = math.hypot(*(row["delta_norm"] for row in of))
        weight_norm = math.hypot(*(w for w in weights if w)) if all(weights) else None
        rows.append(
            {
                "part": part,
                "layers": len(of),
                "lines": f"{sum(row['num_lines'] for row in of):,} {of[0]['line_axis']}"
                if of[0]["line_axis"] != "rank"
                else f"rank {of[0]['num_lines']}",
                "delta_norm": norm,
                "weight_norm": weight_norm,
                "relative": norm / weight_norm if weight_norm else None,
                "delta_max": max(row["delta_max"] for row in of),
            }
        )
    return rows


def effort(summary: Mapping[str, Any]) -> str:
    """What making the change took, as far as it is known."""
    said = [
        f"{summary[key]:,} {what}"
        for key, what in (("labels", "labelled examples"), ("steps", "optimizer steps"), ("trained_parameters", "trained parameters"))
        if summary.get(key) is not None
    ]  # fmt: skip
    if summary.get("flop"):
        said.append(
            f"{summary['flop']:.2g} floating-point operations, with location and preparation where there are any"
        )
    return f"The change took {', '.join(said)}." if said else ""
