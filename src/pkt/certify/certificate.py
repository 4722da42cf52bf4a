"""The verdict: transfer, tuning, no effect or undecided, with harm beside it. A pure function of scores.

S seeds, I items. A difference is always `real_source - other`, with bounds L and U at the level of the certificate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pkt.certify.arms import REAL, kind
from pkt.certify.statistics import Spread, holm, spread

SEEDS_FOR_A_VERDICT = 5
SHARE_OF_LEAD = 0.1
"""The default margin, as a share of the source's lead over the target."""
MOST_SEEDS, MOST_UNITS = 200, 100
"""How far `needed` looks: seeds, and multiples of the units at hand."""


@dataclass(frozen=True)
class Guard:
    """Something that a transfer should not harm: scores of the target (I,) and of real_source (S, I)."""

    name: str
    unit: str
    target: np.ndarray
    real: np.ndarray
    units: Sequence[str]
    weights: Sequence[float]
    margin: float | None = None
    """None means the certificate's."""


@dataclass(frozen=True)
class Evidence:
    """Scores of the items that decide: the target's and the source's (I,), each arm's (S, I)."""

    target: np.ndarray
    source: np.ndarray
    arms: Mapping[str, np.ndarray]
    units: Sequence[str]
    guards: Sequence[Guard] = ()


def verdict(
    target: Spread, sources: Mapping[str, Spread], margin: float | None, level: float, *, reads_source: bool = True
) -> str:
    """The rule.

    Args:
        target: real_source minus the target; sources: minus every applicable source arm.
        margin: None where the source has no lead and no margin was given: then only transfer can be found.
        reads_source: a method that reads no source cannot transfer, and what it gains is tuning.
    """
    low, high = target.interval(level)
    bounds = [s.interval(level) for s in sources.values()]
    if low > 0 and not reads_source:
        return "tuning"
    if low > 0 and bounds and all(arm_low > 0 for arm_low, _ in bounds):
        return "transfer"
    if low > 0 and margin is not None and any(arm_high < margin for _, arm_high in bounds):
        return "tuning"
    if margin is not None and -margin < low and high < margin:
        return "no_effect"
    return "undecided"


def rule_in_words(margin: float | None, level: float, *, reads_source: bool = True) -> str:
    """What `verdict` does, for the reader of a certificate."""
    transfer, tuning = "L > 0 against the target and against every source arm", "L > 0 against the target"
    if reads_source:
        tuning += ", and U < m against at least one source arm"
    else:
        transfer = "cannot be, for the method reads no source"
    m = (
        "m, which is unknown here, for the source has no lead over the target"
        if margin is None
        else f"m = {margin:.3f}"
    )
    return (
        f"L and U are {100 * level:.4g}\u00a0% bounds of the difference between the method on the real source and another arm, paired by item and "
        f"seed, clustered by unit; the margin is {m}. transfer: {transfer}. tuning: {tuning}. no_effect: -m < L and U < m against the target. undecided: "
        f"the rest. harm: U < -m on a guard, each with its own m, at (1 - level) / 2 after Holm's correction over the guards. Preliminary: "
        f"fewer than {SEEDS_FOR_A_VERDICT} seeds, a source arm left out, a learning rate at the edge of what was tried, or a source without a lead over the target."
    )


def judge(
    evidence: Evidence, *, margin: float | None, level: float, reads_source: bool, reservations: Sequence[str] = ()
) -> dict[str, Any]:
    """All that `certificate.json` says about the scores.

    Args:
        margin: None means a tenth of the source's lead.
        reads_source: a method that reads none cannot transfer.
        reservations: why the verdict is preliminary, beside the number of seeds.
    """
    real_SI = evidence.arms[REAL]
    lead = float(evidence.source.mean() - evidence.target.mean())
    if margin is None and lead > 0:
        margin = SHARE_OF_LEAD * lead
    differences = {"target": spread(real_SI, np.broadcast_to(evidence.target, real_SI.shape), evidence.units)}
    differences |= {a: spread(real_SI, s, evidence.units) for a, s in evidence.arms.items() if a != REAL}
    sources = {a: s for a, s in differences.items() if a != "target" and kind(a) == "source"} if reads_source else {}
    locators = {a: s for a, s in differences.items() if a != "target" and kind(a) == "locator"}
    found = verdict(differences["target"], sources, margin, level, reads_source=reads_source)
    guards = _guards(evidence.guards, margin, level)
    few = len(real_SI) < SEEDS_FOR_A_VERDICT
    doubts = [*([f"{len(real_SI)} seeds, and not {SEEDS_FOR_A_VERDICT}"] if few else []), *reservations]
    if lead <= 0:
        doubts.append("the source has no lead over the target on these items, so there is nothing to transfer")
    return {
        "verdict": found,
        "preliminary": bool(doubts),
        "preliminary_for": doubts,
        "reason": _reason(found, differences["target"], sources, margin, level, reads_source=reads_source),
        "rule": rule_in_words(margin, level, reads_source=reads_source),
        "harm": any(tested) if (tested := [g["harmed"] for g in guards if g["harmed"] is not None]) else None,
        "location": _location(locators, margin, level),
        "gain": _gain(sources, level),
        "lead": lead,
        "margin": margin,
        "level": level,
        "scores": {"target": float(evidence.target.mean()), "source": float(evidence.source.mean())},
        "comparisons": _comparisons(differences, level),
        "guards": guards,
        "needed": needed(differences["target"], sources, margin, level, reads_source=reads_source)
        if found == "undecided"
        else None,
    }


def needed(
    target: Spread, sources: Mapping[str, Spread], margin: float | None, level: float, *, reads_source: bool = True
) -> dict[str, int | None]:
    """Seeds, or units, in all that would settle it if the means and variances stayed as they are; None: no number tried."""

    def settled(num_seeds: int, num_units: int) -> bool:
        scaled = {a: s.scaled(num_seeds, num_units) for a, s in sources.items()}
        of_target = target.scaled(num_seeds, num_units)
        return verdict(of_target, scaled, margin, level, reads_source=reads_source) != "undecided"

    seeds, units = target.num_seeds, target.num_units
    more_units = range(units, MOST_UNITS * units + 1, max(1, units // 20))
    return {
        "seeds": next((n for n in range(seeds, MOST_SEEDS + 1) if settled(n, units)), None),
        "units": next((n for n in more_units if settled(seeds, n)), None),
    }


def _comparisons(differences: Mapping[str, Spread], level: float) -> list[dict[str, Any]]:
    """One row per difference; Holm's correction runs over the source arms."""
    kinds = {arm: "target" if arm == "target" else kind(arm) for arm in differences}
    sources = [arm for arm in differences if kinds[arm] == "source"]
    adjusted = dict(zip(sources, holm([differences[arm].p_value() for arm in sources]), strict=True))
    rows = []
    for arm, s in differences.items():
        low, high = s.interval(level)
        df = s.error_and_df()[1]
        rows.append(
            {
                "arm": arm,
                "kind": kinds[arm],
                "mean": s.mean,
                "low": low,
                "high": high,
                "df": df if np.isfinite(df) else None,
                "p": s.p_value(),
                "p_holm": adjusted.get(arm),
                "seed_variance": s.seed_variance,
                "unit_variance": s.unit_variance,
                "num_seeds": s.num_seeds,
                "num_units": s.num_units,
            }
        )
    return rows


def _guards(guards: Sequence[Guard], margin: float | None, level: float) -> list[dict[str, Any]]:
    """One row per guard. Without a margin there is no test; Holm's correction runs over those that are tested."""
    spreads = [
        spread(g.real, np.broadcast_to(g.target, g.real.shape), g.units, g.weights, is_score=g.unit == "score")
        for g in guards
    ]
    margins = [g.margin or margin for g in guards]
    tested = [i for i, m in enumerate(margins) if m is not None]
    p_values = {i: spreads[i].p_above(-(margins[i] or 0)) for i in tested}
    adjusted = dict(zip(tested, holm(list(p_values.values())), strict=True))
    rows = []
    for i, (g, s) in enumerate(zip(guards, spreads, strict=True)):
        low, high = s.interval(level)
        rows.append(
            {
                "name": g.name,
                "unit": g.unit,
                "mean": s.mean,
                "low": low,
                "high": high,
                "margin": margins[i],
                "p": p_values.get(i),
                "p_holm": adjusted.get(i),
                "harmed": adjusted[i] < (1 - level) / 2 if i in adjusted else None,
            }
        )
    return rows


def _gain(sources: Mapping[str, Spread], level: float) -> dict[str, Any] | None:
    """The source-attributable gain: what the real source adds to the best of the arms without it."""
    if not sources:
        return None
    arm = min(sources, key=lambda a: sources[a].mean)
    low, high = sources[arm].interval(level)
    return {"arm": arm, "mean": sources[arm].mean, "low": low, "high": high}


def _location(locators: Mapping[str, Spread], margin: float | None, level: float) -> dict[str, str]:
    if not locators:
        return {"answer": "not_asked", "reason": "No locator arm was run."}
    bounds = {arm: s.interval(level) for arm, s in locators.items()}
    if all(low > 0 for low, _ in bounds.values()):
        return {"answer": "mattered", "reason": f"Better than {_listed(locators, level)}."}
    same = {arm: locators[arm] for arm, (_, high) in bounds.items() if margin is not None and high < margin}
    if same:
        return {
            "answer": "did_not_matter",
            "reason": f"Not better, by the margin of {margin:.3f}, than {_listed(same, level)}.",
        }
    return {"answer": "undecided", "reason": f"Differences: {_listed(locators, level)}."}


def _reason(
    found: str, target: Spread, sources: Mapping[str, Spread], margin: float | None, level: float, *, reads_source: bool
) -> str:
    change = f"The target's score changes by {_shown(target, level)}"
    if found == "transfer":
        return f"{change}, and by more than with any source arm: {_listed(sources, level)} more."
    if found == "no_effect":
        return f"{change}, which stays within the margin of {margin:.3f}."
    if found == "tuning" and not reads_source:
        return f"{change}; the method reads no source, so none of it can come from one."
    if found == "tuning":
        same = {arm: s for arm, s in sources.items() if margin is not None and s.interval(level)[1] < margin}
        return (
            f"{change}, but not by a margin of {margin:.3f} more than without the source: {_listed(same, level)} more."
        )
    if reads_source and not sources:
        return f"{change}; no source arm was run, so its cause is open."
    if margin is None:
        return f"{change}; the source has no lead over the target on these items, so there is nothing to transfer and no margin."
    if target.interval(level)[1] < 0:
        return f"{change}: it falls, which is neither transfer nor tuning, and not certainly within the margin of {margin:.3f}."
    if target.interval(level)[0] <= 0:
        return f"{change}: neither above zero for certain nor certainly within the margin of {margin:.3f}."
    open_arms = {arm: s for arm, s in sources.items() if s.interval(level)[0] <= 0}
    return f"{change}, but whether by more than without the source is open: {_listed(open_arms, level)} more."


def _listed(spreads: Mapping[str, Spread], level: float) -> str:
    return ", ".join(f"{arm} ({_shown(s, level)})" for arm, s in spreads.items())


def _shown(s: Spread, level: float) -> str:
    mean, low, high = (f"{value:+.3f}".replace("-", "−") for value in (s.mean, *s.interval(level)))
    return f"{mean} [{low}, {high}]".replace("+0.000", "0.000").replace("−0.000", "0.000")
