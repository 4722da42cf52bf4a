"""Pictures of the parametric analysis, from the content of `parametric.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pkt.report.curves import Curve, Plot, curves
from pkt.report.dots import Dot, dots
from pkt.report.figures import Figure
from pkt.report.heatmap import Panel, heatmaps
from pkt.report.numbers import p_value, percent, plain
from pkt.similarity.starts import PUBLISHED, RANDOM_BLOCK, Row, mean, names

STARTS = {
    "lora": "LoRA",
    "pissa": "PiSSA",
    "seeking": "Seeking",
    "seeking_coupled": "Seeking, coupled",
    "random_init": "noise",
    RANDOM_BLOCK: "random block",
}
MATRICES = STARTS | {"pissa": "target's weight", "seeking": "sensitive block", "seeking_coupled": "coupled block"}
LOOKS = {name: look for look, name in enumerate(("lora", "random_init", "pissa", "seeking_coupled", "seeking", RANDOM_BLOCK))}  # fmt: skip
QUANTITIES = {
    "own": "cosine with the weight",
    "remainder": "cosine with the remainder",
    "start_norm": "norm, over the weight's",
    "left": "column spaces",
    "right": "row spaces",
}
SIDES = {"left": "Column spaces", "right": "Row spaces"}
UNDEFINED = "LoRA's own start has B = 0: it is zero, has no direction, and its cells are empty."


def figures(found: Mapping[str, Any]) -> list[Figure]:
    """In the order of the page."""
    tables, draws = found["tables"], found["options"]["draws"]
    return [
        _own_map(tables),
        _remainder_map(tables),
        _signatures(tables),
        _against_random(tables, draws),
        _module_dots(tables, draws, "own", "Cosine with the weight, by module"),
        _module_dots(tables, draws, "remainder", "Cosine with the remainder, by module"),
        _angles(tables, draws),
        _energy(tables),
        _ranks(tables),
    ]


def _map(tables: Mapping[str, list[Row]], column: str, name: str, label: str) -> str:
    """Layers by modules, a panel per start; the first draw."""
    rows = [row for row in tables["cosines"] if row["draw"] == 0 and row["layer"] is not None]
    layers, modules = names(rows, "layer"), names(rows, "module")
    held = {(row["init"], row["layer"], row["module"]): row[column] for row in rows}
    most = max((abs(value) for value in held.values() if value is not None), default=1.0)
    panels = [
        Panel(
            title=_name(init),
            values=[[held[init, layer, module] for module in modules] for layer in layers],
            rows=[str(layer) for layer in layers],
            columns=modules,
            xlabel="module",
            ylabel="layer of the target",
            low=-most,
            high=most,
        )
        for init in names(rows)
    ]
    return heatmaps(panels, name, label)


def _own_map(tables: Mapping[str, list[Row]]) -> Figure:
    pissa, seeking, block = (_prediction(tables, init, "own") for init in ("pissa", "seeking", RANDOM_BLOCK))
    return Figure(
        name="own-cosines",
        title="Cosine of each start with the target's weight",
        svg=_map(
            tables, "own", "own-cosines", "Cosine with the target's own weight, layers by modules, for every start"
        ),
        shown=f"For every layer and linear map, the cosine of B0 A0 with the target's weight W, both as flat vectors. {UNDEFINED}",
        read=f"1 would be the weight itself. PiSSA is made from the weight, hence {plain(pissa['mean'], 3)} on average; Seeking's blocks give "
        f"{plain(seeking['mean'], 3)}.",
        chance=f"A block taken anywhere in the source gives {plain(block['mean'], 3)} on average: compare its panel with Seeking's.",
        origin="parametric-cosines.csv",
        columns=["start", "module", "mean over layers", "sd over layers", "predicted", "published"],
        rows=_module_table(tables, "own"),
    )


def _remainder_map(tables: Mapping[str, list[Row]]) -> Figure:
    seeking, block = (_prediction(tables, init, "remainder") for init in ("seeking", RANDOM_BLOCK))
    return Figure(
        name="remainder-cosines",
        title="Cosine of each start with the remainder",
        svg=_map(
            tables, "remainder", "remainder-cosines", "Cosine with the remainder, layers by modules, for every start"
        ),
        shown=f"The same with the remainder W − B0 A0, the base that is trained on. {UNDEFINED}",
        read=f"What is subtracted points away from what is left: Seeking's {plain(seeking['mean'], 3)} says how large the start is beside the "
        "weight, and nothing of what is in it. Of what PiSSA subtracts nothing is left, hence its zeros.",
        chance=f"The random block gives {plain(block['mean'], 3)}; a matrix with nothing in common with the weight gives "
        f"−|B0 A0| / |W − B0 A0|, here {plain(seeking['predicted_mean'], 3)} for the norms of Seeking's start.",
        origin="parametric-cosines.csv",
        columns=["start", "module", "mean over layers", "sd over layers", "predicted", "published"],
        rows=_module_table(tables, "remainder"),
    )


def _module_table(tables: Mapping[str, list[Row]], column: str) -> list[list[str]]:
    cells = [f"{column}_{what}" for what in ("mean", "sd", "predicted", "published")]
    return [[_name(row["init"]), row["module"], *(_number(row[cell]) for cell in cells)] for row in tables["modules"]]


def _signatures(tables: Mapping[str, list[Row]]) -> Figure:
    """Measured against predicted cosines."""
    rows = [row for row in tables["cosines"] if row["draw"] == 0 and row["own"] is not None]
    plots = [
        Plot(
            title,
            [
                Curve(_name(init), [r[f"predicted_{column}"] for r in held], [r[column] for r in held], LOOKS[init], cloud=True)
                for init in names(rows)
                if (held := [row for row in rows if row["init"] == init])
            ],
            "predicted",
            "measured",
            diagonal=True,
        )
        for column, title in (("own", "with the weight"), ("remainder", "with the remainder"))
    ]  # fmt: skip
    own, rest = (_prediction(tables, "pissa", name) for name in ("own", "remainder"))
    seeking = _prediction(tables, "seeking", "remainder")
    norms = [abs(PUBLISHED["seeking", part][1]) for part in ("up", "down")]
    ratios = " and ".join(plain(c / (1 - c * c) ** 0.5, 3) for c in norms)
    energies = " and ".join(percent(PUBLISHED["pissa", part][0] ** 2) for part in ("up", "down"))
    return Figure(
        name="signatures",
        title="Which signatures are identities",
        svg=curves(plots, "signatures", "Measured cosines against those predicted", across=2),
        shown="Every matrix of the target, per start: the measured cosine against the one predicted. PiSSA: the root of the energy that the "
        "rank keeps of the weight, and 0, for the parts of an SVD are orthogonal. All others: 0, and −|B0 A0| / |W − B0 A0|, as for any "
        "matrix without a relation to the weight.",
        read=f"PiSSA meets both to within {own['largest_gap']:.0e} and {rest['largest_gap']:.0e}: identities, true of every weight. Seeking's "
        f"remainder is met to within {seeking['largest_gap']:.3f}: once the cosine with the weight is near 0, it is a ratio of norms. The "
        f"published figures (Llama-2, 13B to 7B, up and down) say so too: PiSSA's 0.153 and 0.152 are {energies} of the energy kept, "
        f"Seeking's −0.114 and −0.125 are starts of {ratios} of the weight's norm.",
        chance="Points of unrelated matrices scatter around the dashed diagonal, as those of noise and of the random block do.",
        origin="parametric-predictions.csv",
        columns=["start", "cosine with", "prediction", "matrices", "mean", "predicted", "largest gap"],
        rows=[
            [_name(r["init"]), _with(r["quantity"]), r["prediction"], r["matrices"], _number(r["mean"]),
             _number(r["predicted_mean"]), f"{r['largest_gap']:.1e}"]
            for r in tables["predictions"]
        ],
    )  # fmt: skip


def _against_random(tables: Mapping[str, list[Row]], draws: int) -> Figure:
    rows = [row for row in tables["against_random"] if row["init"] != "pissa"]
    expected = (draws - 1) / (draws + 1)
    shown = [Dot(QUANTITIES[r["quantity"]], r["inside"] / r["matrices"], group=_name(r["init"])) for r in rows]
    apart = [r for r in rows if r["init"].startswith("seeking") and r["p_value"] < 0.05]
    said = "; ".join(
        f"{_name(r['init'])}, {QUANTITIES[r['quantity']]}: {r['inside']} of {r['matrices']}" for r in apart
    )
    return Figure(
        name="against-random",
        title="Is the start one more random block?",
        svg=dots(shown, xlabel="share of matrices within the random blocks' range", references={"by chance": expected},
                 name="against-random", label="Share of matrices within the range of random blocks"),
        shown=f"The share of matrices in which a start lies between the smallest and the largest of {draws} random blocks of the same source "
        "matrix. PiSSA, which is made from the weight, is in the table.",
        read=f"Less than chance beyond its error (p < 0.05): {said}." if apart else "In nothing that is measured does Seeking's start differ "
        "from one more random block (every p at least 0.05).",
        chance=f"One more random block would lie within the range with probability {plain(expected, 2)}.",
        origin="parametric-against_random.csv",
        columns=["start", "quantity", "within", "expected", "of", "p", "mean", "random blocks' mean"],
        rows=[
            [_name(r["init"]), QUANTITIES[r["quantity"]], r["inside"], f"{r['expected_inside']:.1f}", r["matrices"], p_value(r["p_value"]),
             _number(r["mean"]), _number(r["random_mean"])]
            for r in tables["against_random"]
        ],
    )  # fmt: skip


def _module_dots(tables: Mapping[str, list[Row]], draws: int, column: str, title: str) -> Figure:
    rows = [
        row for row in tables["modules"] if row["init"] not in ("lora", "pissa") and row[f"{column}_mean"] is not None
    ]
    shown = [
        Dot(_name(row["init"]), row[f"{column}_mean"], row[f"{column}_low"], row[f"{column}_high"], module)
        for module in names(rows, "module")
        for row in rows
        if row["module"] == module
    ]
    outside = [
        module
        for module in names(rows, "module")
        if not _row(rows, RANDOM_BLOCK, module)[f"{column}_low"] <= _row(rows, "seeking", module)[f"{column}_mean"]
        <= _row(rows, RANDOM_BLOCK, module)[f"{column}_high"]
    ]  # fmt: skip
    return Figure(
        name=f"modules-{column}",
        title=title,
        svg=dots(shown, xlabel="mean cosine over layers", references={"unrelated": 0.0} if column == "own" else {},
                 name=f"modules-{column}", label=title),
        shown=f"Means over layers. Noise and random block are drawn {draws} times: the dot is the first draw, the bar the range of all.",
        read="Compare Seeking's dot with the random block's bar below it. " + (
            f"It lies outside in {', '.join(outside)}." if outside else "It lies inside in every module."
        ),
        chance="The random block's bar; "
        + ("0 for a matrix without a relation to the weight." if column == "own" else "noise has the norms of Seeking's start."),
        origin="parametric-modules.csv",
    )  # fmt: skip


def _angles(tables: Mapping[str, list[Row]], draws: int) -> Figure:
    shown, rows = [], []
    for side, title in SIDES.items():
        held = [row for row in tables["angles"] if row["side"] == side and row["mean_square"] is not None]
        for init in names(held):
            of_draws = [
                [row["mean_square"] / row["chance_mean_square"] for row in held if (row["init"], row["draw"]) == (init, draw)]
                for draw in names([row for row in held if row["init"] == init], "draw")
            ]  # fmt: skip
            means = [sum(ratios) / len(ratios) for ratios in of_draws]
            low, high = (min(means), max(means)) if len(means) > 1 else (None, None)
            if init != "pissa":
                shown.append(Dot(_name(init), means[0], low, high, title))
            first = [row for row in held if (row["init"], row["draw"]) == (init, 0)]
            for module in names(first, "module"):
                of = [row for row in first if row["module"] == module]
                known = next(
                    r for r in tables["chance"] if (r["dimension"], r["rank"]) == (of[0]["dimension"], of[0]["rank"])
                )
                rows.append(
                    [_name(init), title.lower(), module, _number(mean(r["mean_square"] for r in of)), _number(known["mean_square"]),
                     _number(mean(r["largest"] for r in of)), f"{known['largest_low']:.3f} to {known['largest_high']:.3f}"]
                )  # fmt: skip
    return Figure(
        name="angles",
        title="Angles between the start and the weight's first singular vectors",
        svg=dots(shown, xlabel="mean squared cosine of the principal angles, over chance", references={"random subspaces": 1.0},
                 name="angles", label="Mean squared cosine of principal angles over chance"),
        shown="How far the column (row) space of B0 A0 falls into the span of as many first left (right) singular vectors of the weight: the "
        f"mean squared cosine over chance, averaged over matrices. Bars: range of {draws} draws. PiSSA spans that space itself (cosine 1 "
        "in every direction) and is in the table.",
        read="1 is no relation, more is a share in the weight's main directions. Neighbours in the table: the largest cosine, with the range "
        "that 95 % of random subspaces have.",
        chance="rank / dimension for the mean squared cosine, exactly: the dashed line.",
        origin="parametric-angles.csv",
        columns=["start", "space", "module", "mean squared cosine", "by chance", "largest cosine", "by chance (95 %)"],
        rows=rows,
    )  # fmt: skip


def _energy(tables: Mapping[str, list[Row]]) -> Figure:
    rows, rank = tables["energy"], tables["cosines"][0]["rank"]
    plots = [
        _by_rank(rows, MATRICES, "kept", module, [module], "energy kept", (0, 1.02)) for module in names(rows, "module")
    ]
    sweep = [row for row in tables["cosines"] if row["init"] == "pissa" and row["layer"] is not None]
    kept = mean(row["own"] ** 2 for row in sweep)
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


def _ranks(tables: Mapping[str, list[Row]]) -> Figure:
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
            [_name(init), rank, *(_number(mean(r[c] for r in held)) for c in ("own", "remainder", "predicted_remainder"))]
            for init in names(rows)
            for rank in names(rows, "rank")
            if (held := [r for r in rows if (r["init"], r["rank"]) == (init, rank) and r["module"] in modules])
        ],
    )  # fmt: skip


def _by_rank(rows: Sequence[Row], labels: Mapping[str, str], column: str, title: str, modules: list[str], ylabel: str, ends: Any) -> Plot:  # fmt: skip
    """Means over the matrices of some modules, a curve per start."""
    held = [row for row in rows if row["module"] in modules]
    found = []
    for init in names(held):
        means = {
            rank: mean(r[column] for r in held if (r["init"], r["rank"]) == (init, rank))
            for rank in names(held, "rank")
        }
        known = {rank: value for rank, value in means.items() if value is not None}
        found.append(Curve(labels[init], list(known), list(known.values()), LOOKS[init]))
    return Plot(title, found, "rank", ylabel, tuple(sorted(names(held, "rank"))), *ends)


def _row(rows: Sequence[Row], init: str, module: str) -> Row:
    return next(row for row in rows if (row["init"], row["module"]) == (init, module))


def _prediction(tables: Mapping[str, list[Row]], init: str, quantity: str) -> Row:
    return next(row for row in tables["predictions"] if (row["init"], row["quantity"]) == (init, quantity))


def _name(init: str) -> str:
    return STARTS.get(init, init)


def _with(quantity: str) -> str:
    return {"own": "the weight", "remainder": "the remainder"}[quantity]


def _number(value: float | None) -> str:
    return "–" if value is None else plain(value, 3)
