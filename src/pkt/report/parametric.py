"""Pictures of the parametric analysis, from the content of `parametric.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pkt.report.curves import Curve, Plot, curves
from pkt.report.dots import Dot, dots
from pkt.report.figures import Figure
from pkt.report.heatmap import Panel, heatmaps
from pkt.report.numbers import p_value, percent, plain
from pkt.report.parametric_ranks import angles, energy, ranks
from pkt.report.parametric_words import ALPHA
from pkt.report.starts import LOOKS, gap, name_of, number, prediction
from pkt.similarity.starts import PUBLISHED, RANDOM_BLOCK, Row, names

QUANTITIES = {
    "own": "cosine with the weight",
    "remainder": "cosine with the remainder",
    "start_norm": "norm, over the weight's",
    "left": "column spaces",
    "right": "row spaces",
}
WITH = {"own": "the weight", "remainder": "the remainder"}
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
        angles(tables, draws),
        energy(tables),
        ranks(tables),
    ]


def _map(tables: Mapping[str, list[Row]], column: str, name: str, label: str) -> str:
    """Layers by modules, a panel per start; the first draw."""
    rows = [row for row in tables["cosines"] if row["draw"] == 0 and row["layer"] is not None]
    layers, modules = names(rows, "layer"), names(rows, "module")
    held = {(row["init"], row["layer"], row["module"]): row[column] for row in rows}
    most = max((abs(value) for value in held.values() if value is not None), default=1.0)
    panels = [
        Panel(
            title=name_of(init),
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
    pissa, seeking, block = (prediction(tables, init, "own") for init in ("pissa", "seeking", RANDOM_BLOCK))
    return Figure(
        name="own-cosines",
        title="Cosine of each start with the target's weight",
        svg=_map(
            tables, "own", "own-cosines", "Cosine with the target's own weight, layers by modules, for every start"
        ),
        shown=f"For every layer and linear map, the cosine of B0 A0 with the target's weight W, both as flat vectors. {UNDEFINED}",
        read=f"1 would be the weight itself. PiSSA is made from the weight, hence {number(pissa['mean'])} on average; Seeking's blocks give "
        f"{number(seeking['mean'])}.",
        chance=f"A block taken anywhere in the source gives {plain(block['mean'], 3)} on average: compare its panel with Seeking's.",
        origin="parametric-cosines.csv",
        columns=["start", "module", "mean over layers", "sd over layers", "predicted", "published"],
        rows=_module_table(tables, "own"),
    )


def _remainder_map(tables: Mapping[str, list[Row]]) -> Figure:
    seeking, block = (prediction(tables, init, "remainder") for init in ("seeking", RANDOM_BLOCK))
    return Figure(
        name="remainder-cosines",
        title="Cosine of each start with the remainder",
        svg=_map(
            tables, "remainder", "remainder-cosines", "Cosine with the remainder, layers by modules, for every start"
        ),
        shown=f"The same with the remainder W − B0 A0, the base that is trained on. {UNDEFINED}",
        read=f"What is subtracted points away from what is left. To within {seeking['largest_gap']:.3f}, Seeking's {plain(seeking['mean'], 3)} says how "
        "large the start is beside the weight, and nothing of what is in it. Of what PiSSA subtracts nothing is left, hence its zeros.",
        chance=f"The random block gives {plain(block['mean'], 3)}; a matrix with nothing in common with the weight gives "
        f"−|B0 A0| / |W − B0 A0|, here {plain(seeking['predicted_mean'], 3)} for the norms of Seeking's start.",
        origin="parametric-cosines.csv",
        columns=["start", "module", "mean over layers", "sd over layers", "predicted", "published"],
        rows=_module_table(tables, "remainder"),
    )


def _module_table(tables: Mapping[str, list[Row]], column: str) -> list[list[str]]:
    cells = [f"{column}_{what}" for what in ("mean", "sd", "predicted", "published")]
    return [[name_of(row["init"]), row["module"], *(number(row[cell]) for cell in cells)] for row in tables["modules"]]


def _signatures(tables: Mapping[str, list[Row]]) -> Figure:
    """Measured against predicted cosines."""
    rows = [row for row in tables["cosines"] if row["draw"] == 0 and None not in (row["own"], row["remainder"])]
    plots = [
        Plot(
            title,
            [
                Curve(name_of(init), [r[f"predicted_{column}"] for r in held], [r[column] for r in held], LOOKS[init], cloud=True)
                for init in names(rows)
                if (held := [row for row in rows if row["init"] == init])
            ],
            "predicted",
            "measured",
            diagonal=True,
        )
        for column, title in (("own", "with the weight"), ("remainder", "with the remainder"))
    ]  # fmt: skip
    own, rest = (prediction(tables, "pissa", name) for name in ("own", "remainder"))
    seeking = prediction(tables, "seeking", "remainder")
    norms = [abs(PUBLISHED["seeking", part][1]) for part in ("up", "down")]
    ratios = " and ".join(plain(c / (1 - c * c) ** 0.5, 3) for c in norms)
    energies = " and ".join(percent(PUBLISHED["pissa", part][0] ** 2) for part in ("up", "down"))
    pissas = " and ".join(plain(PUBLISHED["pissa", part][0], 3) for part in ("up", "down"))
    seekings = " and ".join(plain(PUBLISHED["seeking", part][1], 3) for part in ("up", "down"))
    return Figure(
        name="signatures",
        title="Which signatures are identities",
        svg=curves(plots, "signatures", "Measured cosines against those predicted", across=2),
        shown="Every matrix of the target, per start: the measured cosine against the one predicted. PiSSA: the root of the energy that the "
        "rank keeps of the weight, and 0, for the parts of an SVD are orthogonal. All others: 0, and −|B0 A0| / |W − B0 A0|, as for any "
        "matrix without a relation to the weight.",
        read=f"PiSSA meets both to within {gap(own['largest_gap'])} and {gap(rest['largest_gap'])}: identities, true of every weight. Seeking's "
        f"remainder is met to within {seeking['largest_gap']:.3f}: once the cosine with the weight is near 0, it is a ratio of norms. The "
        f"published figures (Llama-2, 13B to 7B, up and down) say so too: PiSSA's {pissas} are {energies} of the energy kept, "
        f"Seeking's {seekings} are starts of {ratios} of the weight's norm.",
        chance="Points of unrelated matrices scatter around the dashed diagonal, as those of noise and of the random block do.",
        origin="parametric-cosines.csv and parametric-predictions.csv",
        columns=["start", "cosine with", "prediction", "matrices", "mean", "predicted", "largest gap"],
        rows=[
            [name_of(r["init"]), WITH[r["quantity"]], r["prediction"], r["matrices"], number(r["mean"]),
             number(r["predicted_mean"]), gap(r["largest_gap"])]
            for r in tables["predictions"]
        ],
    )  # fmt: skip


def _against_random(tables: Mapping[str, list[Row]], draws: int) -> Figure:
    rows = [row for row in tables["against_random"] if row["init"] != "pissa"]
    expected = (draws - 1) / (draws + 1)
    shown = [Dot(QUANTITIES[r["quantity"]], r["inside"] / r["matrices"], group=name_of(r["init"])) for r in rows]
    tested = sum(r["init"].startswith("seeking") for r in rows)
    apart = [r for r in rows if r["init"].startswith("seeking") and r["p_value"] < ALPHA]
    said = "; ".join(
        f"{name_of(r['init'])}, {QUANTITIES[r['quantity']]}: {r['inside']} of {r['matrices']}" for r in apart
    )
    return Figure(
        name="against-random",
        title="Is the start one more random block?",
        svg=dots(shown, xlabel="share of matrices within the random blocks' range", references={"by chance": expected},
                 name="against-random", label="Share of matrices within the range of random blocks"),
        shown=f"The share of matrices in which a start lies between the smallest and the largest of {draws} random blocks of the same source "
        "matrix. PiSSA, which is made from the weight, is in the table.",
        read=f"Within the range less often than chance would have it (p < {ALPHA}): {said}." if apart else "In nothing that is measured does Seeking's start differ "
        f"from one more random block (every p at least {ALPHA}).",
        chance=f"One more random block would lie within the range with probability {plain(expected, 2)}. Of the {tested} counts for Seeking about "
        f"{plain(ALPHA * tested, 1)} would have p < {ALPHA} all the same.",
        origin="parametric-against_random.csv",
        columns=["start", "quantity", "within", "expected", "of", "p", "mean", "random blocks' mean"],
        rows=[
            [name_of(r["init"]), QUANTITIES[r["quantity"]], r["inside"], f"{r['expected_inside']:.1f}", r["matrices"], p_value(r["p_value"]),
             number(r["mean"]), number(r["random_mean"])]
            for r in tables["against_random"]
        ],
    )  # fmt: skip


def _module_dots(tables: Mapping[str, list[Row]], draws: int, column: str, title: str) -> Figure:
    inner = {row["module"] for row in tables["cosines"] if row["layer"] is not None}
    rows = [row for row in tables["modules"] if row["init"] not in ("lora", "pissa") and row["module"] in inner]
    shown = [
        Dot(name_of(row["init"]), row[f"{column}_mean"], row[f"{column}_low"], row[f"{column}_high"], module)
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
        chance="The random block's bar: one more random block would lie outside it in "
        f"{plain(len(names(rows, 'module')) * 2 / (draws + 1), 1)} of {len(names(rows, 'module'))} modules. Noise has the norms of Seeking's start.",
        origin="parametric-modules.csv",
    )  # fmt: skip


def _row(rows: Sequence[Row], init: str, module: str) -> Row:
    return next(row for row in rows if (row["init"], row["module"]) == (init, module))
