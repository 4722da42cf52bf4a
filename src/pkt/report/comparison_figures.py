"""The picture of a comparison: what the real source adds in every certified run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from pkt.report.comparison import SETTING, Row, setting
from pkt.report.dots import Dot, dots
from pkt.report.figures import Figure
from pkt.report.numbers import interval, signed
from pkt.report.verdict import VERDICTS


def gains(rows: Sequence[Row]) -> Figure | None:
    """Gains over the best arm without the source, under their verdicts; None where no run has one.

    Args:
        rows: of one task, source, target and deciding tier.
    """
    held = [row for kind in VERDICTS for row in rows if row["verdict"] == kind and row["gain"]]
    if not held:
        return None
    order = {kind: i for i, kind in enumerate(VERDICTS)}
    held = sorted(held, key=lambda row: (order[row["verdict"]], -row["gain"]["mean"]))
    drawn = [
        Dot(row["run"], row["gain"]["mean"], row["gain"]["low"], row["gain"]["high"], VERDICTS[row["verdict"]][0])
        for row in held
    ]
    name = re.sub(r"[^\w.-]+", "-", "-".join(["gains", *(rows[0][key] for key in SETTING)]))
    return Figure(
        name,
        "What the source adds",
        dots(
            drawn,
            xlabel="← worse\u2003\u2003gain over the best arm without the source\u2003\u2003better →",
            references=_references(held),
            name=name,
            label=f"Gain over the best arm without the source, by run: {setting(rows)}",
        ),
        shown=f"One row per certified run, under its verdict: the dot is what the real source adds, in score on tier {rows[0]['tier']}, to the "
        f"best arm that lacks its knowledge; the bar is the {_levels(held)} interval over seeds and units.",
        read=f"Wholly right of zero: the source itself helped. Wholly left of the margin: whatever it added is too small to matter. {_says(held, len(rows))}",
        chance=_chance(held),
        origin="certificate.json of each run, by comparison.json",
        columns=["run", "verdict", "best arm without the source", "gain", "interval", "margin", "file"],
        rows=[
            [
                row["run"],
                VERDICTS[row["verdict"]][0],
                row["gain"]["arm"],
                signed(row["gain"]["mean"]),
                interval(row["gain"]["low"], row["gain"]["high"]),
                "–" if row["margin"] is None else f"{row['margin']:.3f}",
                f"{row['folder']}/certificate.json",
            ]
            for row in held
        ],
    )


def _references(rows: Sequence[Row]) -> Mapping[str, float]:
    """Zero, and the margin, or the smallest and the largest."""
    margins = sorted({row["margin"] for row in rows if row["margin"]})
    names = ["margin"] if len(margins) == 1 else ["smallest margin", "largest margin"]
    return {"no gain": 0.0, **dict(zip(names, [margins[0], margins[-1]] if margins else [], strict=False))}


def _levels(rows: Sequence[Row]) -> str:
    return " or ".join(dict.fromkeys(f"{100 * row['level']:.4g}\u00a0%" for row in rows))


def _says(rows: Sequence[Row], whole: int) -> str:
    """How many intervals are where."""
    right = [row["run"] for row in rows if row["gain"]["low"] > 0]
    left = [row["run"] for row in rows if row["gain"]["high"] < 0]
    said = f"Here {len(right)} of {len(rows)} {'is' if len(right) == 1 else 'are'} wholly right of zero"
    said += f" ({', '.join(right)})" if right else ""
    said += f", {len(left)} wholly left of it ({', '.join(left)})." if left else "."
    missing = whole - len(rows)
    return said + (f" Not shown, for want of such a gain: {missing} run{'s' * (missing != 1)}." if missing else "")


def _chance(rows: Sequence[Row]) -> str:
    expected = sum(1 - row["level"] for row in rows)
    many = f", about {expected:.1f} of these {len(rows)}" if len(rows) > 1 else ""
    return (
        f"If no source added anything, a bar would miss zero in {100 * expected / len(rows):.3g}\u00a0% of cases{many}, more of them to "
        "the left than to the right: the best of several arms is partly the luckiest."
    )
