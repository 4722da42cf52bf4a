"""What the parametric analysis says in words, from its rows."""

from __future__ import annotations

from collections.abc import Sequence

from pkt.similarity.starts import Row, names

ALPHA = 0.05
"""A count of matrices outside the random blocks' range that is less likely than this is called a difference."""


def sentence(identities: Sequence[Row], against: Sequence[Row], draws: int) -> str:
    """The finding on Seeking's start and on PiSSA's."""
    own, remainder = (_row(against, "seeking", name) for name in ("own", "remainder"))
    gap = _row(identities, "seeking", "remainder")["largest_gap"]
    pissa_own, pissa_rest = (_row(identities, "pissa", name) for name in ("own", "remainder"))
    alike = own["p_value"] >= ALPHA
    verdict = "lies to the target's weights as random blocks of the same source do" if alike else (
        "does not lie to the target's weights as random blocks of the same source do"
    )  # fmt: skip
    return (
        f"Seeking's start {verdict}: cosine with the weight {own['mean']:+.3f} on average (random blocks {own['random_mean']:+.3f}), within the "
        f"range of {draws} random blocks in {own['inside']} of {own['matrices']} matrices, where {own['expected_inside']:.1f} are expected by "
        f"chance; cosine with the remainder {remainder['mean']:+.3f} (random blocks {remainder['random_mean']:+.3f}), which norms alone give "
        f"to within {gap:.3f}. PiSSA's {pissa_own['mean']:+.3f} and {pissa_rest['mean']:+.3f} are identities (largest gaps "
        f"{pissa_own['largest_gap']:.0e} and {pissa_rest['largest_gap']:.0e})."
    )


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
    if any(row["layer"] is None for row in cosines):
        found.append("Embedding and LM head are in the tables and in the modules' means, not in the maps over layers.")
    return found


def _row(rows: Sequence[Row], init: str, quantity: str) -> Row:
    return next(row for row in rows if (row["init"], row["quantity"]) == (init, quantity))
