"""Slices from files, grouped value heads, and placing changes on the target's lines."""

from __future__ import annotations

import pytest
import torch

from pkt.errors import ConfigError, ShapeError, UnsupportedModelError
from pkt.extract.layers import top_scores
from pkt.extract.neurons import NeuronSet, num_chosen, select
from pkt.extract.slices import place, read_slices
from pkt.models.families import FAMILIES, KINDS, LINE_AXIS


def chosen(dims, layers, k, seed=0):
    gen = torch.Generator().manual_seed(seed)
    index = {
        kind: torch.stack([torch.randperm(dims.neurons(kind), generator=gen)[:k] for _ in layers]) for kind in KINDS
    }
    return NeuronSet(dict.fromkeys(KINDS, layers), index, {kind: torch.zeros(len(layers), k) for kind in KINDS})


@pytest.mark.parametrize("family", list(FAMILIES))
def test_slices_are_the_rows_and_columns_that_a_neuron_uses(make_lm, family):
    """A forward pass through one o_proj channel: its column, and the v_proj row that feeds it."""
    lm = make_lm(family, "source")
    picked = chosen(lm.dims, [0, 2], 5)
    slices = read_slices(lm, picked)
    with lm.loaded() as model:
        for i, layer in enumerate([0, 2]):
            block = model.model.layers[layer]
            if family == "phi3":  # queries, keys and values one below the other; gate above up
                up, v = block.mlp.gate_up_proj.weight[80:], block.self_attn.qkv_proj.weight[6 * 8 + 2 * 8 :]
            else:
                up, v = block.mlp.up_proj.weight, block.self_attn.v_proj.weight
            for r in range(5):
                ffn, attention = int(picked.index["ffn"][i, r]), int(picked.index["attention"][i, r])
                assert torch.equal(slices["up"][i, r], up[ffn])
                assert torch.equal(slices["down"][i, r], block.mlp.down_proj.weight[:, ffn])
                assert torch.equal(slices["o"][i, r], block.self_attn.o_proj.weight[:, attention])
                assert torch.equal(slices["v"][i, r], v[lm.dims.v_row(attention)])


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_v_row_is_the_row_whose_change_reaches_that_channel(make_lm, family):
    """Zeroing row v_row(j) of v_proj silences channel j of o_proj's input, and only channels with the same v_row."""
    lm = make_lm(family, "target")
    ids = torch.arange(3, 12)[None]
    seen = {}
    with lm.loaded() as model, torch.no_grad():
        attention = model.model.layers[0].self_attn
        attention.o_proj.register_forward_pre_hook(lambda _m, args: seen.update(o=args[0][0, -1].clone()))
        for row in range(lm.dims.kv_heads * lm.dims.head_dim):
            kept = attention.v_proj.weight[row].clone()
            attention.v_proj.weight[row] = 0
            model(ids)
            silent = {j for j in range(lm.dims.attention) if seen["o"][j] == 0}
            assert silent == {j for j in range(lm.dims.attention) if lm.dims.v_row(j) == row}
            attention.v_proj.weight[row] = kept


def test_rows_that_fall_together_are_averaged(tiny_target):
    dims = tiny_target.dims
    group = dims.heads // dims.kv_heads
    index = torch.tensor([[0, dims.head_dim, 1], [5, 6, 7]])
    assert group == 2
    assert dims.v_row(0) == dims.v_row(dims.head_dim)
    picked = NeuronSet(
        {key: [0, 1] for key in KINDS}, dict.fromkeys(KINDS, index), dict.fromkeys(KINDS, torch.zeros(2, 3))
    )
    changes = {part: torch.randn(2, 3, dims.width) for part in LINE_AXIS}
    delta = place(changes, picked, dims)
    v, o = delta.changes[0, "v"], delta.changes[0, "o"]
    assert v.index.tolist() == [0, 1]
    torch.testing.assert_close(v.values, torch.stack([changes["v"][0, :2].mean(0), changes["v"][0, 2]]))
    assert o.index.tolist() == [0, 1, dims.head_dim]
    assert torch.equal(o.values, changes["o"][0][[0, 2, 1]])
    assert len(delta.changes) == 8


def test_placing_is_differentiable(tiny_target):
    picked = chosen(tiny_target.dims, [0, 1], 4)
    changes = {part: torch.randn(2, 4, tiny_target.dims.width, requires_grad=True) for part in LINE_AXIS}
    sum(c.entries().sum() for c in place(changes, picked, tiny_target.dims).changes.values()).backward()
    assert all(torch.equal(changes[part].grad, torch.ones_like(changes[part])) for part in ("up", "down", "o"))


def test_lines_outside_the_matrix_are_refused(tiny_source):
    with pytest.raises(ShapeError, match="up_proj.*80 lines, asked for 80"):
        tiny_source.slices("up", {0: [80]})


def test_slices_keep_the_given_order_and_repeats(tiny_source):
    got = tiny_source.slices("down", {1: [9, 2, 9]})[1]
    assert torch.equal(got[0], got[2])
    assert torch.equal(got[1], tiny_source.slices("down", {1: [2]})[1][0])


def test_layer_map_keeps_the_best_in_depth_order():
    assert top_scores(torch.tensor([3.0, 1.0, 2.0, 5.0]), 3, "m") == [0, 2, 3]
    assert top_scores(torch.tensor([1.0, 1.0, 1.0]), 2, "m") == [0, 1]
    with pytest.raises(UnsupportedModelError, match="m has 2 layers, but the target has 3"):
        top_scores(torch.zeros(2), 3, "m")


def test_rate_gives_the_count():
    assert num_chosen(256, 0.1, "ffn") == 25
    assert num_chosen(256, 1.0, "ffn") == 256
    with pytest.raises(ConfigError, match="selects no ffn neuron.*0.0039"):
        num_chosen(256, 0.001, "ffn")


def test_too_few_source_neurons_are_named():
    scores = {"ffn": torch.zeros(2, 8), "attention": torch.zeros(2, 4)}
    with pytest.raises(UnsupportedModelError, match="tiny has 4 attention neurons per layer, but 5"):
        select(scores, {key: [0, 1] for key in KINDS}, {"ffn": 5, "attention": 5}, "tiny")
