"""Query neurons against plain loops in float64."""

from __future__ import annotations

import pytest
import torch

from pkt.extract.attribution import attribute
from pkt.extract.query_neurons import QueryNeuronsConfig, query_neurons
from pkt.extract.scores import encode_answers, locate
from pkt.tasks.base import Example

EXAMPLES = [
    Example(f"e{i}", p, r, r, p) for i, (p, r) in enumerate([("Where is Tom?", "In Paris."), ("A flurb", "is red")])
]


def walk(model, ids):
    """Residual streams before the layers, FFN activations at every position, last query's weights, values; float64."""
    seen, handles = {}, []
    for i, block in enumerate(model.model.layers):
        handles += [
            block.register_forward_pre_hook(lambda _m, a, i=i: seen.update({(i, "x"): a[0][0, -1]})),
            block.self_attn.register_forward_hook(lambda _m, _a, r, i=i: seen.update({(i, "w"): r[1][0, :, -1]})),
            block.self_attn.v_proj.register_forward_hook(lambda _m, _a, r, i=i: seen.update({(i, "v"): r[0]})),
            block.mlp.down_proj.register_forward_pre_hook(lambda _m, a, i=i: seen.update({(i, "m"): a[0][0]})),
        ]
    handles.append(model.model.norm.register_forward_pre_hook(lambda _m, a: seen.update(h=a[0][0, -1])))
    model(torch.tensor([ids[:-1]]))
    for handle in handles:
        handle.remove()
    return seen


def by_loops(lm, example, count):
    """Scores of all FFN neurons of one example, by plain loops over value neurons, positions and layers."""
    (ids,) = encode_answers(lm, [example], "plain")
    dims = lm.dims
    with lm.loaded() as model, torch.no_grad():
        model.set_attn_implementation("eager")
        model.double()
        seen = walk(model, ids)
        scale = torch.rsqrt(seen["h"].pow(2).mean() + dims.norm_eps)

        def lp(state):
            return model.lm_head(state * scale * model.model.norm.weight).log_softmax(-1)[..., ids[-1]]

        values = []
        for layer, block in enumerate(model.model.layers):
            x = seen[layer, "x"]
            for neuron in range(dims.attention):
                head, channel = divmod(neuron, dims.head_dim)
                row = head // (dims.heads // dims.kv_heads) * dims.head_dim + channel
                sent = seen[layer, "w"][head] * seen[layer, "v"][:, row]
                gain = lp(x + sent[:, None] * block.self_attn.o_proj.weight[:, neuron]) - lp(x)
                values += [(float(s), layer, row, position) for position, s in enumerate(gain)]
        values = sorted(values, reverse=True)[:count]
        score = torch.zeros(dims.layers, dims.ffn, dtype=torch.float64)
        for s, layer, row, position in values:
            block = model.model.layers[layer]
            reads = block.input_layernorm.weight * block.self_attn.v_proj.weight[row]
            for below in range(layer):
                written = seen[below, "m"][position] * model.model.layers[below].mlp.down_proj.weight
                score[below] += s * (reads @ written)
        return score


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("count", [3, 30])
def test_equals_plain_loops(make_lm, family, count):
    lm = make_lm(family, "source")
    found = locate(query_neurons, lm, EXAMPLES, "plain", QueryNeuronsConfig(values=count), per_example=True)
    gains = attribute(lm, EXAMPLES, "plain", per_example=True)
    assert torch.equal(found.neurons["attention"], gains.neurons["attention"])
    assert torch.equal(found.layers["attention"], gains.layers["attention"])
    for e, example in enumerate(EXAMPLES):
        expected = by_loops(lm, example, count)
        largest = float(expected.abs().max())
        assert largest > 0
        torch.testing.assert_close(found.neurons["ffn"][e].double(), expected, rtol=1e-4, atol=1e-5 * largest)
        torch.testing.assert_close(found.layers["ffn"][e].double(), expected.sum(-1), rtol=1e-4, atol=1e-4 * largest)
        assert not expected[-1].any()


def test_more_value_neurons_than_there_are(make_lm):
    lm = make_lm("llama", "target")
    found = locate(query_neurons, lm, EXAMPLES[:1], "plain", QueryNeuronsConfig(values=10**6))
    expected = by_loops(lm, EXAMPLES[0], 10**6)
    torch.testing.assert_close(
        found.neurons["ffn"][0].double(), expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max())
    )


def test_model_is_left_as_it_was(make_lm):
    lm = make_lm("llama", "target")
    with lm.loaded() as model:
        locate(query_neurons, lm, EXAMPLES, "plain")
        assert model.config._attn_implementation == "sdpa"
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
