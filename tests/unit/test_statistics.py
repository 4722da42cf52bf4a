"""The clustered standard error against a direct computation, and the rows of a summary."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pkt.evaluation.statistics import summarise


def line(score: float, unit: str, tier: str = "new", arm: str = "target", seed: int = 0) -> dict:
    return {"arm": arm, "seed": seed, "id": "", "unit": unit, "tier": tier, "score": score}


def sandwich(scores: list[float], units: list[str]) -> float:
    """Cluster-robust error of the intercept in a regression on a constant, written with matrices."""
    y = np.array(scores)
    names = sorted(set(units))
    member = np.array([[float(u == name) for u in units] for name in names])
    x = np.ones((len(y), 1))
    residual = y - y.mean()
    bread = np.linalg.inv(x.T @ x)
    meat = sum((x.T @ (row * residual))[:, None] @ (x.T @ (row * residual))[None, :] for row in member)
    groups = len(names)
    return math.sqrt((bread @ meat @ bread)[0, 0] * groups / (groups - 1))


@given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from("abcde")), min_size=2, max_size=40))
def test_clustered_error_is_the_sandwich(pairs: list[tuple[float, str]]) -> None:
    scores, units = [s for s, _ in pairs], [u for _, u in pairs]
    if len(set(units)) < 2:
        return
    (row,) = summarise([line(s, u, tier="") for s, u in pairs])
    assert row["standard_error"] == pytest.approx(sandwich(scores, units), abs=1e-9)
    assert row["score"] == pytest.approx(np.mean(scores))


def test_one_item_per_unit_gives_the_plain_error() -> None:
    scores = [0.0, 1.0, 1.0, 0.0, 1.0, 0.5]
    (row,) = summarise([line(s, f"u{i}", tier="") for i, s in enumerate(scores)])
    assert row["standard_error"] == pytest.approx(np.std(scores, ddof=1) / math.sqrt(len(scores)))


def test_copies_of_an_item_in_one_unit_add_no_certainty() -> None:
    scores = [0.0, 1.0, 1.0, 0.0]
    once, thrice = ([line(s, f"u{i}", tier="") for i, s in enumerate(scores) for _ in range(n)] for n in (1, 3))
    assert summarise(thrice)[0]["standard_error"] == pytest.approx(summarise(once)[0]["standard_error"])


def test_a_single_unit_has_no_error() -> None:
    (row,) = summarise([line(1.0, "u", tier=""), line(0.0, "u", tier="")])
    assert row["standard_error"] is None
    assert row["score"] == 0.5


def test_rows_per_arm_and_tier() -> None:
    lines = [
        line(1.0, "a", "known"),
        line(0.0, "b", "known"),
        line(0.0, "a", "new", seed=1),
        line(1.0, "c", "new", arm="result"),
        line(0.0, "d", "new", arm="result"),
    ]
    rows = {(r["arm"], r["tier"]): r for r in summarise(lines)}
    assert set(rows) == {
        ("target", "known"),
        ("target", "new"),
        ("target", "all"),
        ("result", "new"),
        ("result", "all"),
    }
    everything = rows["target", "all"]
    assert everything["score"] == pytest.approx(1 / 3)
    assert (everything["num_items"], everything["num_units"], everything["seeds"]) == (3, 2, 2)
    assert rows["target", "known"]["num_units"] == 2
    assert set(everything) == {"arm", "tier", "score", "standard_error", "num_items", "num_units", "seeds"}


def test_nothing_gives_nothing() -> None:
    assert summarise([]) == []


def test_change_is_paired_by_item():
    """Two models that answer alike but for one item: the change is known far better than either score."""
    rng = np.random.default_rng(0)
    before = rng.integers(0, 2, 100).astype(float)
    after = before.copy()
    after[:3] = 1 - after[:3]
    lines = [
        {"arm": arm, "seed": 0, "id": str(i), "unit": str(i), "tier": "", "score": float(x)}
        for arm, scores in (("target", before), ("result", after))
        for i, x in enumerate(scores)
    ]
    target, result = summarise(lines)
    assert "change" not in target
    difference = after - before
    assert result["change"] == pytest.approx(difference.mean())
    assert result["change_error"] == pytest.approx(difference.std(ddof=1) / 10)
    assert result["change_error"] < 0.5 * result["standard_error"]
    alone = summarise([line for line in lines if line["arm"] == "result"])
    assert "change" not in alone[0]
