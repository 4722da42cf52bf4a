"""Pictures of the parametric analysis that go by angle or by rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pkt.report.curves import Curve, Plot, curves
from pkt.report.dots import Dot, dots
from pkt.report.figures import Figure
from pkt.report.numbers import percent
from pkt.report.starts import LOOKS, MATRICES, STARTS, name_of, number
from pkt.similarity.starts import RANDOM_BLOCK, Row, mean, names

PLACES = {
    ("left", True): "Column spaces, maps of the layers",
    ("right", True): "Row spaces, maps of the layers",
    ("left", False): "Column spaces (over tokens), embedding and LM head",
    ("right", False): "Row spaces, embedding and LM head",
}
"""By side, and whether the matrix belongs to a layer."""


def angles(tables: Mapping[str, list[Row]], draws: int) -> Figure:
    """Mean squared cosines over chance, averaged over matrices."""
    held = [row for row in tables["angles"] if row["mean_square"] is not None]
    shown = []
    for (side, inside), title in PLACES.items():
        here = [row for row in held if row["side"] == side and (row["layer"] is not None) is inside]
        for init in names(here):
            ratios: dict[int, list[float]] = {}
            for row in here:
                if row["init"] == init:
                    ratios.setdefault(row["draw"], []).append(row["mean_square"] / row["chance_mean_square"])
            means = [sum(of_draw) / len(of_draw) for of_draw in ratios.values()]
            low, high = (min(means), max(means)) if len(means) > 1 else (None, None)
            if init != "pissa":
                shown.append(Dot(name_of(init), means[0], low, high, title))
    return Figure(
        name="angles",
        title="Angles between the start and the weight's first singular vectors",
        svg=dots(shown, xlabel="mean squared cosine of the principal angles, over chance", references={"random subspaces": 1.0},
                 name="angles", label="Mean squared cosine of principal angles over chance"),
        shown="How far the column (row) space of B0 A0 falls into the span of as many first left (right) singular vectors of the weight: the "
        f"mean squared cosine over chance, averaged over matrices. Bars: range of {draws} draws. PiSSA spans that space itself (cosine 1 "
        "in every direction) and is in the table.",
        read=f"1 is what random subspaces have, more is a share in the weight's main directions. {_beyond(tables)} The table has the largest cosine too, with "
        "the range of 95 % of random subspaces.",
        chance="rank / dimension for the mean squared cosine, exactly: the dashed line. Where the random block is as far from it as Seeking, "
        "source and target share those directions at large, and sensitivity does not find them.",
        origin="parametric-angles.csv and parametric-chance.csv",
        columns=["start", "space", "module", "mean squared cosine", "by chance", "largest cosine", "by chance (95 %)"],
        rows=_angle_table(tables),
    )  # fmt: skip


def _beyond(tables: Mapping[str, list[Row]]) -> str:
    """How many matrices of each module exceed random subspaces, for Seeking's start and for those that know nothing of the weight."""
    high = {(row["dimension"], row["rank"]): row["mean_square_high"] for row in tables["chance"]}
    first = [row for row in tables["angles"] if row["draw"] == 0 and row["mean_square"] is not None]
    found = []
    for init in ("seeking", RANDOM_BLOCK, "random_init"):
        held: dict[str, list[bool]] = {}
        for row in first:
            if row["init"] == init:
                name = f"{row['module']} ({'columns' if row['side'] == 'left' else 'rows'})"
                held.setdefault(name, []).append(row["mean_square"] > high[row["dimension"], row["rank"]])
        if held:
            over = [f"{name} {sum(beyond)} of {len(beyond)}" for name, beyond in held.items() if any(beyond)]
            found.append(f"{name_of(init)}: {', '.join(over) or 'none'}")
    return (
        f"Matrices beyond 97.5 % of random subspaces, of which one in forty would be by chance: {'; '.join(found)}. Where noise is among "
        "them, 1 is not what chance gives there, and noise is the reference."
    )


def _angle_table(tables: Mapping[str, list[Row]]) -> list[list[str]]:
    known = {(row["dimension"], row["rank"]): row for row in tables["chance"]}
    first = [row for row in tables["angles"] if row["draw"] == 0 and row["mean_square"] is not None]
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in first:
        groups.setdefault((row["init"], row["side"], row["module"]), []).append(row)
    found = []
    for (init, side, module), rows in groups.items():
        chance = known[rows[0]["dimension"], rows[0]["rank"]]
        found.append(
            [
                name_of(init),
                "columns" if side == "left" else "rows",
                module,
                number(mean(row["mean_square"] for row in rows)),
                number(chance["mean_square"]),
                number(mean(row["largest"] for row in rows)),
                f"{chance['largest_low']:.3f} to {chance['largest_high']:.3f}",
            ]
        )
    return found


def energy(tables: Mapping[str, list[Row]]) -> Figure:
    """Energy kept per rank, a panel per module."""
    rows, rank = tables["energy"], tables["cosines"][0]["rank"]
    plots = [
        _by_rank(rows, MATRICES, "kept", module, [module], "energy kept", (0, 1.02)) for module in names(rows, "module")
    ]
    sweep = [row["own"] for row in tables["cosines"] if row["init"] == "pissa" and row["layer"] is not None]
    kept = mean(own if own is None else own**2 for own in sweep)
    return Figure(
        name="energy",
        title="Energy kept per rank",
        svg=curves(plots, "energy", "Share of the squared norm kept by rank, per module"),
        shown="The share of a matrix's squared Frobenius norm that its best approximation of a rank keeps, mean over layers: the target's "
        "weight, the source's block that Seeking takes, a random block, and noise with that block's mean and variance.",
        read=f"A curve that rises early is a matrix of few directions. At rank {rank} the target's weights keep "
        f"{percent(kept or 0.0)} on average over the maps of its layers: that is PiSSA's cosine, squared.",
        chance="The curve of noise: what a matrix of that shape keeps without any structure.",
        origin="parametric-energy.csv",
    )  # fmt: skip


def ranks(tables: Mapping[str, list[Row]]) -> Figure:
    """The cosines by rank."""
    rows = tables["ranks"]
    modules = [
        m for m in names(rows, "module") if set(names(rows, "rank")) == {r["rank"] for r in rows if r["module"] == m}
    ]
    titles = {"own": "with the weight", "remainder": "with the remainder"}
    plots = [_by_rank(rows, STARTS, column, title, modules, "cosine", (None, None)) for column, title in titles.items()]
    return Figure(
        name="ranks",
        title="The cosines by rank",
        svg=curves(plots, "ranks", "Cosine with the weight and with the remainder, by rank", across=2),
        shown=f"Both cosines for starts of other ranks, alpha / rank as it is; mean over all matrices of {', '.join(modules)}.",
        read="PiSSA's cosine with the weight grows with the energy that is kept, that with the remainder stays 0. A start without a relation "
        "to the weight stays near 0 with the weight, and falls with the remainder as its norm grows.",
        chance="The curves of the random block and of noise.",
        origin="parametric-ranks.csv",
        columns=["start", "rank", "with the weight", "with the remainder", "predicted"],
        rows=[
            [name_of(init), rank, *(number(mean(r[c] for r in held)) for c in ("own", "remainder", "predicted_remainder"))]
            for init in names(rows)
            for rank in names(rows, "rank")
            if (held := [r for r in rows if (r["init"], r["rank"]) == (init, rank) and r["module"] in modules])
        ],
    )  # fmt: skip


def _by_rank(rows: Sequence[Row], labels: Mapping[str, str], column: str, title: str, modules: list[str], ylabel: str, ends: Any) -> Plot:  # fmt: skip
    """Means over the matrices of some modules, a curve per start or matrix."""
    what = "matrix" if labels is MATRICES else "init"
    held = [row for row in rows if row["module"] in modules]
    found = []
    for init in names(held, what):
        means = {
            rank: mean(r[column] for r in held if (r[what], r["rank"]) == (init, rank)) for rank in names(held, "rank")
        }
        known = {rank: value for rank, value in means.items() if value is not None}
        found.append(Curve(labels[init], list(known), list(known.values()), LOOKS[init]))
    return Plot(title, found, "rank", ylabel, tuple(sorted(names(held, "rank"))), *ends)
