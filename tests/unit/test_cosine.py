"""Cosine of two deltas, and their range beside the weights, against dense matrices."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from pkt.errors import ShapeError
from pkt.inject import cosine as module
from pkt.inject.changes import Dense, Lines, LowRank
from pkt.inject.cosine import cosine, inner, products, shared
from pkt.inject.delta import Delta
from pkt.inject.ranges import ranges

ROWS, COLUMNS = 13, 9


def changes() -> dict[str, Lines | LowRank | Dense]:
    """Every kind of change of one matrix, lines out of order."""
    gen = torch.Generator().manual_seed(0)

    def r(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=gen)

    return {
        "rows": Lines(torch.tensor([5, 1, 12]), r(3, COLUMNS), 0),
        "other rows": Lines(torch.tensor([2, 12, 5, 7]), r(4, COLUMNS), 0),
        "apart": Lines(torch.tensor([3]), r(1, COLUMNS), 0),
        "columns": Lines(torch.tensor([8, 0]), r(2, ROWS), 1),
        "other columns": Lines(torch.tensor([0, 3, 8]), r(3, ROWS), 1),
        "low rank": LowRank(r(2, COLUMNS), r(ROWS, 2)),
        "other rank": LowRank(r(4, COLUMNS), r(ROWS, 4)),
        "dense": Dense(r(ROWS, COLUMNS)),
    }


def dense(change) -> torch.Tensor:
    weight = torch.zeros(ROWS, COLUMNS)
    change.add_(weight)
    return weight.double()


@pytest.mark.parametrize("chunk", [1 << 22, 10])
def test_inner_products_are_those_of_dense_matrices(monkeypatch, chunk):
    monkeypatch.setattr(module, "CHUNK", chunk)
    for a, b in itertools.product(changes().values(), changes().values()):
        assert inner(a, b) == pytest.approx(float((dense(a) * dense(b)).sum()), rel=1e-6, abs=1e-6)
        assert shared(a, b) == int(((dense(a) != 0) & (dense(b) != 0)).sum())


def test_cosine_of_deltas_over_all_tensors():
    c = changes()
    one = Delta({(0, "up"): c["rows"], (1, "up"): c["low rank"], (0, "o"): c["dense"]})
    other = Delta({(0, "up"): c["columns"], (1, "up"): c["dense"], (1, "o"): c["rows"]})
    found = products(one, other)
    empty = torch.zeros(ROWS, COLUMNS).double()
    flat = [
        torch.cat([(dense(d.changes[key]) if key in d.changes else empty).flatten() for key in found])
        for d in (one, other)
    ]
    assert cosine(found.values()).value == pytest.approx(
        float(flat[0] @ flat[1] / flat[0].norm() / flat[1].norm()), abs=1e-7
    )
    assert cosine([found[0, "o"]]).value is None  # one of the two does not change it


def test_the_same_delta_has_cosine_1_and_its_opposite_minus_1():
    one = Delta({(0, "up"): changes()["rows"], (0, "down"): changes()["low rank"]})
    assert cosine(products(one, one * 3.0).values()).value == pytest.approx(1)
    assert cosine(products(one, one * -1.0).values()).value == pytest.approx(-1)


def test_the_reference_is_the_spread_of_random_directions():
    """One tensor and equal lines: 1 / sqrt(entries). Elsewhere: what drawing them gives."""
    lines = torch.tensor([5, 1, 12])
    found = cosine(
        products(
            Delta({(0, "up"): Lines(lines, torch.randn(3, 9), 0)}),
            Delta({(0, "up"): Lines(lines, torch.randn(3, 9), 0)}),
        ).values()
    )
    assert found.random_sd == pytest.approx(1 / math.sqrt(27))

    gen = torch.Generator().manual_seed(1)

    def drawn(index: list[int], norms: tuple[float, float]) -> Delta:
        parts = [torch.randn(len(index), COLUMNS, generator=gen), torch.randn(ROWS, COLUMNS, generator=gen)]
        rows, whole = (norm * t / t.norm() for norm, t in zip(norms, parts, strict=True))
        return Delta({(0, "up"): Lines(torch.tensor(index), rows, 0), (0, "o"): Dense(whole)})

    pairs = [products(drawn([1, 2, 3, 4], (1.0, 2.0)), drawn([3, 4, 5], (3.0, 0.5))).values() for _ in range(1500)]
    values = [cosine(pair).value for pair in pairs]
    assert np.mean(values) == pytest.approx(0, abs=4 * np.std(values) / math.sqrt(len(values)))
    assert np.std(values) == pytest.approx(cosine(pairs[0]).random_sd, rel=0.1)


def test_changes_of_tensors_of_other_shapes_are_refused():
    c = changes()
    for other in (
        Dense(torch.ones(COLUMNS, ROWS)),
        LowRank(torch.ones(2, ROWS), torch.ones(COLUMNS, 2)),
        Lines(torch.tensor([0]), torch.ones(1, ROWS + 1), 0),
    ):
        for one in (c["rows"], c["low rank"], c["dense"]):
            with pytest.raises(ShapeError, match="are not of one tensor"):
                inner(one, other)


def test_ranges_are_of_the_changed_entries_and_the_weights_under_them(tiny_target):
    d = tiny_target.dims
    rows, low = torch.randn(2, d.width), LowRank(torch.randn(2, d.width), torch.randn(d.ffn, 2))
    delta = Delta({(0, "up"): Lines(torch.tensor([4, 1]), rows, 0), (1, "gate"): low})
    found = dict(ranges(delta, tiny_target))
    with tiny_target.loaded() as model:
        weights = {
            (0, "up"): model.model.layers[0].mlp.up_proj.weight[[4, 1]],
            (1, "gate"): model.model.layers[1].mlp.gate_proj.weight,
        }
        for key, change in {(0, "up"): rows, (1, "gate"): low.b @ low.a}.items():
            row, w = found[key], weights[key]
            assert row["entries"] == change.numel()
            for name, t in (("", change), ("weight_", w)):
                assert [row[f"{name}min"], row[f"{name}max"]] == [float(t.min()), float(t.max())]
                assert row[f"{name}rms"] == pytest.approx(float(t.pow(2).mean().sqrt()), rel=1e-5)
                assert row[f"{name}q99"] == pytest.approx(float(t.flatten().double().quantile(0.99)), rel=1e-5)
            assert row["max_ratio"] == pytest.approx(float(change.abs().max() / w.abs().max()), rel=1e-6)
            assert row["rms_ratio"] == pytest.approx(row["rms"] / row["weight_rms"])
