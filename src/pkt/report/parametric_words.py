"""What the parametric analysis says in words, from its rows."""

from __future__ import annotations

from collections.abc import Sequence

from pkt.report.numbers import plain
from pkt.similarity.starts import RANDOM_BLOCK, Row, names

ALPHA = 0.05
"""A count of matrices outside the random blocks' range that is less likely than this is called a difference."""


def sentence(predictions: Sequence[Row], against: Sequence[Row], draws: int) -> str:
    """The finding on Seeking's start and on PiSSA's."""
    own, remainder = (_row(against, "seeking", name) for name in ("own", "remainder"))
    gap = _row(predictions, "seeking", "remainder")["largest_gap"]
    verdict = "cannot be told" if own["p_value"] >= ALPHA else "can be told"
    return (
        f"Seeking's start {verdict} from random blocks of the same source by its direction: its cosine with the target's weight is "
        f"{plain(own['mean'], 3)} on average (random blocks {plain(own['random_mean'], 3)}), within the range of {draws} random blocks in "
        f"{own['inside']} of {own['matrices']} matrices ({own['expected_inside']:.1f} expected by chance), and its cosine with the remainder, "
        f"{plain(remainder['mean'], 3)} (random blocks {plain(remainder['random_mean'], 3)}), is what norms alone give to within {gap:.3f}"
        f"{_identities(predictions)}."
    )


def _identities(predictions: Sequence[Row]) -> str:
    pissa = [_row(predictions, "pissa", name) for name in ("own", "remainder")]
    if any(row["largest_gap"] is None for row in pissa):  # full rank: nothing is left
        return ""
    own, rest = (plain(row["mean"], 3) for row in pissa)
    return f"; PiSSA's {own} and {rest} are identities, met to within {max(row['largest_gap'] for row in pissa):.0e}"


def notes(cosines: Sequence[Row], sweep: Sequence[Row], draws: int) -> list[str]:
    """What a reader must know of the numbers."""
    found = [
        "LoRA's own start has B = 0, so that B0 A0 is zero: it has no direction, and its cosines are left empty.",
        f"Starts with chance in them are drawn {draws} times; pictures show the first draw, intervals the range of all. That so many "
        "matrices lie outside the range is called a difference where it is less likely than 0.05, taking matrices as independent.",
    ]
    asked = max(row["rank"] for row in sweep)
    short = [m for m in names(sweep, "module") if max(r["rank"] for r in sweep if r["module"] == m) < asked]
    if short:
        found.append(f"The sweep leaves out ranks above the smaller side of {', '.join(short)}.")
    if _are_whole(cosines):
        found.append(
            "The source's matrices are as large as the target's: every block is the whole matrix, Seeking's and the random one are the same, "
            "and that they agree says nothing."
        )
    if any(row["layer"] is None for row in cosines):
        found.append("Embedding and LM head are in the tables and in the modules' means, not in the maps over layers.")
    return found


def _are_whole(cosines: Sequence[Row]) -> bool:
    """Whether all draws of the random block are one and the same, in every matrix."""
    found: dict[object, set[float | None]] = {}
    for row in cosines:
        if row["init"] == RANDOM_BLOCK:
            found.setdefault((row["layer"], row["module"]), set()).add(row["own"])
    return all(len(values) == 1 for values in found.values())


def _row(rows: Sequence[Row], init: str, quantity: str) -> Row:
    return next(row for row in rows if (row["init"], row["quantity"]) == (init, quantity))
