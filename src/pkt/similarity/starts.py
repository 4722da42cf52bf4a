"""What the cosines of adapter starts with the target's weights amount to: means, predictions, and where random blocks lie.

Rows are those of the parametric analysis: one per start (`init`), draw, layer and module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean, stdev
from typing import Any

Row = dict[str, Any]
RANDOM_BLOCK = "random_block"
"""The start that all others are held against."""
PUBLISHED = {
    ("pissa", "up"): (0.153, -0.002),
    ("pissa", "down"): (0.152, -0.002),
    ("seeking", "up"): (0.000, -0.114),
    ("seeking", "down"): (0.000, -0.125),
}
"""Own and remainder cosine, Llama-2 13B to 7B, rank 16 (LaTen, arXiv:2505.14436)."""


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def spread(values: Iterable[float | None]) -> float | None:
    """Standard deviation (n - 1) of what is known; None below two values."""
    known = [value for value in values if value is not None]
    return stdev(known) if len(known) > 1 else None


def names(rows: Sequence[Row], column: str = "init") -> list[Any]:
    """The values of a column, each once, in their order."""
    return list(dict.fromkeys(row[column] for row in rows))


def module_rows(cosines: Sequence[Row]) -> list[Row]:
    """Mean and standard deviation over layers of the first draw, the range of the means of all draws, and what was published."""
    found = []
    for init in names(cosines):
        for module in names(cosines, "module"):
            held = [row for row in cosines if (row["init"], row["module"]) == (init, module)]
            first = [row for row in held if row["draw"] == 0]
            draws = [[row for row in held if row["draw"] == draw] for draw in names(held, "draw")]
            row: Row = {"init": init, "module": module, "layers": len(first), "draws": len(draws)}
            for name, published in zip(("own", "remainder"), PUBLISHED.get((init, module), (None, None)), strict=True):
                means = [m for m in (mean(r[name] for r in of_draw) for of_draw in draws) if m is not None]
                row |= {
                    f"{name}_mean": mean(r[name] for r in first),
                    f"{name}_sd": spread(r[name] for r in first),
                    f"{name}_low": min(means) if len(means) > 1 else None,
                    f"{name}_high": max(means) if len(means) > 1 else None,
                    f"{name}_predicted": mean(r[f"predicted_{name}"] for r in first),
                    f"{name}_published": published,
                }
            found.append(row)
    return found


def prediction_rows(cosines: Sequence[Row]) -> list[Row]:
    """Cosines beside what holds of every such start, whatever its source, with the largest gap over matrices and draws.

    PiSSA's are identities. Those of other starts hold of every matrix that has nothing to do with the weight. Of a weight that is zero
    nothing is predicted.
    """
    found = []
    for init in names(cosines):
        for name in ("own", "remainder"):
            held = [row for row in cosines if row["init"] == init and None not in (row[name], row[f"predicted_{name}"])]
            found.append(
                {
                    "init": init,
                    "quantity": name,
                    "prediction": _prediction(init, name),
                    "matrices": len(held),
                    "mean": mean(row[name] for row in held),
                    "predicted_mean": mean(row[f"predicted_{name}"] for row in held),
                    "largest_gap": max((abs(row[name] - row[f"predicted_{name}"]) for row in held), default=None),
                }
            )
    return found


def _prediction(init: str, quantity: str) -> str:
    if init == "lora":
        return "none: the start is zero"
    if init == "pissa":
        return "root of the energy kept" if quantity == "own" else "0: the parts are orthogonal"
    return "0: unrelated" if quantity == "own" else "-|B0 A0| / |W - B0 A0|: unrelated"


def random_rows(cosines: Sequence[Row], angles: Sequence[Row], probability: Callable[[int, int, float], float]) -> list[Row]:  # fmt: skip
    """In how many matrices a start lies between the smallest and the largest of the random blocks' draws.

    If a start were one more random block, it would lie there with probability `(D - 1) / (D + 1)`, D draws, since each of the D + 1
    is as likely as the others to be the smallest or the largest.

    Args:
        probability: (number outside, matrices, chance to be outside) -> how likely so many or more are.
    """
    values: dict[tuple[str, str], dict[tuple[Any, str], list[float]]] = {}
    for row in cosines:
        for name in ("own", "remainder", "start_norm"):
            _put(values, row, name, row[name] if row["own"] is not None else None)
    for row in angles:
        _put(values, row, row["side"], row["mean_square"])
    found = []
    for (init, name), by_matrix in values.items():
        if init == RANDOM_BLOCK:
            continue
        random = values[RANDOM_BLOCK, name]
        num_draws = len(next(iter(random.values())))
        outside = [
            not min(random[key]) <= firsts[0] <= max(random[key]) for key, firsts in by_matrix.items() if key in random
        ]
        chance = 2 / (num_draws + 1)
        found.append(
            {
                "init": init,
                "quantity": name,
                "matrices": len(outside),
                "inside": len(outside) - sum(outside),
                "expected_inside": len(outside) * (1 - chance),
                "p_value": probability(sum(outside), len(outside), chance),
                "mean": fmean(firsts[0] for firsts in by_matrix.values()),
                "random_mean": fmean(fmean(draws) for draws in random.values()),
            }
        )
    return found


def _put(values: dict[tuple[str, str], dict[tuple[Any, str], list[float]]], row: Row, name: str, value: float | None) -> None:  # fmt: skip
    if value is not None:
        values.setdefault((row["init"], name), {}).setdefault((row["layer"], row["module"]), []).append(value)
