"""What the certificate says in words, for the HTML report and for the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pkt.report.numbers import interval, p_value, signed

if TYPE_CHECKING:
    from rich.table import Table

KINDS = ("target", "source", "locator")
"""Of comparisons, in the order in which they are shown."""
VERDICTS = {
    "transfer": (
        "transfer",
        "The target improves, and by more than with every control arm that lacks the source's knowledge.",
    ),
    "tuning": (
        "tuning, not transfer",
        "The target improves, but over at least one control arm that lacks the source's knowledge its lead is below "
        "the margin: training alone explains the gain.",
    ),
    "no_effect": ("no effect", "The change against the target as it was is smaller than the margin, up or down."),
    "undecided": ("undecided", "The rules for transfer, for tuning and for no effect are all unmet so far."),
}
"""Name and meaning."""
_LOCATION = {
    "mattered": "Location mattered.",
    "did_not_matter": "Location did not matter.",
    "undecided": "Whether location mattered is undecided.",
    "not_asked": "Whether location matters was not asked.",
}


def verdict_lines(certificate: Mapping[str, Any]) -> list[str]:
    """What a certificate says, for a terminal: the verdict first.

    Args:
        certificate: the content of `certificate.json`.
    """
    name = VERDICTS[certificate["verdict"]][0]
    early = ", preliminary" if certificate["preliminary"] else ""
    said = {
        f"verdict: {name}{early}": certificate["reason"],
        "": _needed(certificate),
        harm_flag(certificate): _harmed(certificate),
        "source-attributable gain": _gain(certificate),
        "location": _location(certificate),
        "measured on": _basis(certificate),
    }
    return [f"{key}: {text}" if key else text for key, text in said.items() if text]


def certificate_table(certificate: Mapping[str, Any]) -> Table:
    """The comparisons for a terminal: the real source minus each arm, its interval and p-values.

    Args:
        certificate: the content of `certificate.json`.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("real source minus", no_wrap=True)
    for name in ("difference", f"{level(certificate)} interval", "p", "p (Holm)"):
        table.add_column(Text(name), justify="right", no_wrap=True)
    for row in comparisons(certificate):
        cells = (signed(row["mean"]), interval(row["low"], row["high"]), p_value(row["p"]), p_value(row["p_holm"]))
        table.add_row(*(Text(cell) for cell in (row["arm"], *cells)))
    return table


def comparisons(certificate: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """With the target first, then with the source arms, then with the locator arms."""
    return sorted(certificate["comparisons"], key=lambda row: KINDS.index(row["kind"]))


def level(certificate: Mapping[str, Any]) -> str:
    """Of the intervals: `95 %`."""
    return f"{100 * certificate['level']:.4g}\u00a0%"


def top_sentence(certificate: Mapping[str, Any]) -> str:
    """The verdict with its reason, and harm, for the top of a page."""
    name = VERDICTS[certificate["verdict"]][0]
    early = " (preliminary)" if certificate["preliminary"] else ""
    harm = " It did harm." if certificate["harm"] else ""
    return f"{name.capitalize()}{early}: {certificate['reason']}{harm}"


def stamp(certificate: Mapping[str, Any], summary: Mapping[str, Any]) -> dict[str, Any]:
    """The words of the verdict box; an empty string where there is nothing to say."""
    name, meaning = VERDICTS[certificate["verdict"]]
    if certificate["verdict"] == "tuning" and all(row["kind"] != "source" for row in certificate["comparisons"]):
        meaning = "The target improves, but the method reads no source: training alone explains the gain."
    return {
        "name": name,
        "meaning": meaning,
        "preliminary": _preliminary(certificate),
        "harm": harm_flag(certificate),
        "harmed": _harmed(certificate),
        "needed": _needed(certificate),
        "gain": _gain(certificate),
        "location": _location(certificate),
        "mismatch": _mismatch(certificate, summary),
        "basis": _basis(certificate),
    }


def _preliminary(certificate: Mapping[str, Any]) -> str:
    if not certificate["preliminary"]:
        return ""
    return f"Preliminary, for: {'; '.join(certificate.get('preliminary_for') or ['fewer than 5 seeds'])}."


def harm_flag(certificate: Mapping[str, Any]) -> str:
    """The flag, in one word to three."""
    if certificate["harm"]:
        return "harm"
    if _open(certificate) or _untested(certificate):
        return "harm not excluded"
    return "harm: not asked" if certificate["harm"] is None else "no harm"


def _open(certificate: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Guards that may have fallen by more than their margin, for all that is known."""
    return [row for row in certificate["guards"] if row["margin"] is not None and row["low"] <= -row["margin"]]


def _untested(certificate: Mapping[str, Any]) -> list[str]:
    """Names of the guards that have no margin: the source has no lead, and none was given."""
    return [row["name"] for row in certificate["guards"] if row["harmed"] is None]


def _harmed(certificate: Mapping[str, Any]) -> str:
    """Which guards fell, or may have fallen, or that none did; and which could not be tested."""
    untested = _untested(certificate)
    return _tested(certificate) + (f" Not tested, for want of a margin: {', '.join(untested)}." if untested else "")


def _tested(certificate: Mapping[str, Any]) -> str:
    """What became of the guards that could be tested."""
    tested = [row for row in certificate["guards"] if row["harmed"] is not None]
    if certificate["harm"] is None:
        return "No guard was tested, so nobody can tell whether the change did harm elsewhere."
    fallen = [f"{row['name']} by {abs(row['mean']):.3f}" for row in tested if row["harmed"]]
    if fallen:
        return f"Worse by more than the margin: {', '.join(fallen)}."
    if unknown := _open(certificate):
        shown = ", ".join(f"{row['name']} {signed(row['mean'])} {interval(row['low'], row['high'])}" for row in unknown)
        return f"A fall by more than the margin is neither certain nor excluded: {shown}."
    return f"{count(len(tested), 'guard')} within {'its' if len(tested) == 1 else 'their'} margin."


def _needed(certificate: Mapping[str, Any]) -> str:
    needed = certificate["needed"]
    if certificate["verdict"] != "undecided" or needed is None:
        return ""
    have = {"seeds": len(certificate["seeds"]), "units": certificate["items"]["num_units"]}
    ways = [f"{needed[key]:,} {key} (now {have[key]:,})" for key in have if needed[key] is not None]
    if not ways:
        return "If the means stayed as they are, neither more seeds nor more units alone would settle it."
    return f"If the means stayed as they are, {' or '.join(ways)} would settle it."


def _gain(certificate: Mapping[str, Any]) -> str:
    gain = certificate["gain"]
    if gain is None:
        return ""
    return f"{signed(gain['mean'])} {interval(gain['low'], gain['high'])}, measured against {gain['arm']}, the best arm without the source"


def _location(certificate: Mapping[str, Any]) -> str:
    location = certificate["location"]
    if location is None:
        return ""
    answer = _LOCATION.get(location["answer"], f"Location: {location['answer'].replace('_', ' ')}.")
    return f"{answer} {location['reason']}".strip()


def _mismatch(certificate: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """A certificate of something else than the run that the rest of the page shows."""
    pairs = [(key, certificate[key], summary[key]) for key in ("method", "task")]
    for role in ("source", "target"):
        ours, theirs = certificate[role], summary[role]
        pairs.append((f"the {role}'s name", ours["name"], theirs["name"]))
        if "weights" in ours and "weights" in theirs:
            pairs.append((f"the {role}'s weights", ours["weights"][:16], theirs["weights"][:16]))
    found = [f"{key} ({ours}, not {theirs})" for key, ours, theirs in pairs if ours != theirs]
    return f"This certificate is not about the run below: they differ in {', '.join(found)}." if found else ""


def _basis(certificate: Mapping[str, Any]) -> str:
    """Items, seeds, margin and the version that measured them."""
    items, margin, lead = certificate["items"], certificate["margin"], certificate["lead"]
    said = [
        f"{count(items['num_items'], 'item')} of {count(items['num_units'], 'unit')} (tier {items['tier']})",
        f"{count(len(certificate['seeds']), 'seed')} ({', '.join(str(seed) for seed in certificate['seeds'])})",
        "no margin" if margin is None else f"margin {margin:.3f}",
    ]
    if lead is not None:
        said.append(f"the source leads the target by {lead:.3f}")
    code = certificate.get("code", {})
    if code.get("pkt"):
        said.append(f"pkt {code['pkt']}{' at ' + code['commit'][:12] if code.get('commit') else ''}")
    return ", ".join(said)


def count(number: int, noun: str) -> str:
    """`1 seed`, `5 seeds`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"
