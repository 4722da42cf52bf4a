"""The pictures of a certificate with their words, from the content of `certificate.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pkt.report import certificate_plots as plots
from pkt.report.figures import Figure
from pkt.report.verdict import comparisons, count, level

ORIGIN = "certificate.json"


def figures(certificate: Mapping[str, Any]) -> dict[str, Figure]:
    """Those for which the certificate has numbers."""
    found = {}
    if certificate["comparisons"]:
        found["forest"] = _forest(certificate)
    if plots.scaled_guards(certificate):
        found["guards"] = _guards(certificate)
    if any(arm["score"] is not None for arm in certificate["arms"]):
        found["arm_scores"] = _arm_scores(certificate)
    if plots.curves(certificate):
        found["learning_rates"] = _learning_rates(certificate)
    return found


def _forest(certificate: Mapping[str, Any]) -> Figure:
    items, margin = certificate["items"], certificate["margin"]
    above = [row["arm"] for row in comparisons(certificate) if row["low"] > 0]
    band = " A bar wholly inside the grey band means a difference too small to matter." if margin else ""
    here = f"better than {', '.join(above)}" if above else "better than none of them"
    return Figure(
        "forest",
        "Better than what?",
        plots.forest(certificate),
        shown="Each row sets the method with its real source against one other arm: the dot is the mean difference in score over "
        f"{count(len(certificate['seeds']), 'seed')} and {count(items['num_units'], 'unit')} (tier {items['tier']}), the bar its "
        f"{level(certificate)} interval, the numbers on the right say the same.",
        read=f"A bar wholly to the right of the line at zero means better than that arm.{band} Here it is {here}.",
        chance=f"Without any true difference a bar would miss zero in {_miss(certificate)} of all cases, by chance alone.",
        origin=ORIGIN,
    )


def _guards(certificate: Mapping[str, Any]) -> Figure:
    unscaled = [row["name"] for row in certificate["guards"] if not row["margin"]]
    harmed = [row["name"] for row in certificate["guards"] if row["harmed"]]
    return Figure(
        "guards",
        "Did it do harm?",
        plots.guards(certificate),
        shown="Guards are what the change should leave alone. They have different units, so each change is divided by that guard's margin; "
        "the numbers on the right are in its own unit."
        + (f" Not drawn, for want of a margin: {', '.join(unscaled)}." if unscaled else ""),
        read="Left is worse, grey is within the margin. Harm is a bar wholly to the left of −1 (orange ground) that also holds after Holm's "
        f"correction for looking at several guards. Here {', '.join(harmed) or 'none'} {'were' if len(harmed) > 1 else 'was'} harmed.",
        chance=f"A change that left everything alone would lie around zero, and its bars would miss zero in {_miss(certificate)} of all cases.",
        origin=ORIGIN,
    )


def _arm_scores(certificate: Mapping[str, Any]) -> Figure:
    return Figure(
        "arm-scores",
        "Score of every arm",
        plots.arm_scores(certificate),
        shown="One column per arm: the thick line is the mean score, each ring one seed. The dashed line is the target as it was, the dotted "
        "line the source.",
        read="The way between the two lines is all that could be gained. An arm whose rings lie among those of the real source did as well as it.",
        chance="An arm that taught the target nothing would lie on the dashed line, give or take the scatter of its rings.",
        origin=ORIGIN,
    )


def _learning_rates(certificate: Mapping[str, Any]) -> Figure:
    curves, seed = plots.curves(certificate), certificate["selection_seed"]
    diverged = [_diverged(arm) for arm in curves if any(point["loss"] is None for point in arm["curve"])]
    at_edge = [arm["arm"] for arm in curves if arm["at_edge"]]
    given = [arm["arm"] for arm in certificate["arms"] if arm["lr"] is not None and not arm["curve"]]
    read = [
        f"The rate of {', '.join(given)} was given and not searched."
        if given
        else "Every arm gets its own search, so that none loses for want of tuning.",
        f"A cross at the top is a run whose training diverged: {'; '.join(diverged)}." if diverged else "",
        f"At the edge of the range tried, so a better rate may lie beyond: {', '.join(at_edge)}." if at_edge else "",
        "The loss only chooses the rate; it decides nothing about transfer.",
    ]
    return Figure(
        "learning-rates",
        "Choice of the learning rate",
        plots.learning_rates(certificate),
        shown=f"Validation loss (lower is better) at every learning rate tried{'' if seed is None else f', with seed {seed}'}; the large ring "
        f"is the one chosen, and the thin grey line repeats {curves[0]['arm']} for comparison.",
        read=" ".join(filter(None, read)),
        chance="Rates of nearly equal loss are ordered by chance: another seed may choose the neighbour.",
        origin=ORIGIN,
    )


def _diverged(arm: Mapping[str, Any]) -> str:
    rates = ", ".join(f"{point['lr']:g}" for point in arm["curve"] if point["loss"] is None)
    return f"{arm['arm']} at {rates}"


def _miss(certificate: Mapping[str, Any]) -> str:
    """How often an interval misses the truth."""
    return f"{100 * (1 - certificate['level']):.4g}\u00a0%"
