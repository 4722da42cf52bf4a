"""Query neurons against plain loops in float64."""

from __future__ import annotations

import pytest
import torch
from test_attribution import gain, norm_behind

from pkt.errors import UnsupportedModelError
from pkt.extract.attribution import attribute
from pkt.extract.query_neurons import QueryNeuronsConfig, query_neurons
from pkt.extract.scores import encode_answers, locate
from pkt.methods import METHODS
from pkt.tasks.base import Example

EXAMPLES = [
    Example(f"e{i}", p, r, r, p) for i, (p, r) in enumerate([("Where is Tom?", "In Paris."), ("A flurb", "is red")])
]


def walk(model, ids):
    """Residual streams before the layers, FFN activations at every position, last query's weights, values; float64."""
    seen, handles, size = {}, [], model.config.num_key_value_heads * model.model.layers[0].self_attn.head_dim
    for i, block in enumerate(model.model.layers):
        handles += [
            block.register_forward_pre_hook(lambda _m, a, i=i: seen.update({(i, "x"): a[0][0, -1]})),
            block.self_attn.register_forward_hook(lambda _m, _a, r, i=i: seen.update({(i, "w"): r[1][0, :, -1]})),
            block.self_attn.register_forward_hook(lambda _m, _a, r, i=i: seen.update({(i, "attention"): r[0][0]})),
            block.mlp.register_forward_hook(lambda _m, _a, r, i=i: seen.update({(i, "ffn"): r[0]})),
            reader(block).register_forward_hook(lambda _m, _a, r, i=i: seen.update({(i, "v"): r[0, :, -size:]})),
            block.mlp.down_proj.register_forward_pre_hook(lambda _m, a, i=i: seen.update({(i, "m"): a[0][0]})),
        ]
    handles.append(model.model.norm.register_forward_pre_hook(lambda _m, a: seen.update(h=a[0][0, -1])))
    model(torch.tensor([ids[:-1]]))
    for handle in handles:
        handle.remove()
    return seen


def reader(block):
    """The module whose last rows are the value projection."""
    return getattr(block.self_attn, "v_proj", None) or block.self_attn.qkv_proj


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
            return model.lm_head(state * scale * gain(model.model.norm)).log_softmax(-1)[..., ids[-1]]

        def through(norm, value, out):
            """A value behind the norm of its block, if there is one, whose scale is that of the whole output."""
            if norm is None:
                return value
            return value * gain(norm)[:, None] * torch.rsqrt(out.pow(2).mean() + model.config.rms_norm_eps)

        values = []
        for layer, block in enumerate(model.model.layers):
            x = seen[layer, "x"]
            value = through(
                norm_behind(block, "attention"), block.self_attn.o_proj.weight, seen[layer, "attention"][-1]
            )
            for neuron in range(dims.attention):
                head, channel = divmod(neuron, dims.head_dim)
                row = head // (dims.heads // dims.kv_heads) * dims.head_dim + channel
                sent = seen[layer, "w"][head] * seen[layer, "v"][:, row]
                scores = lp(x + sent[:, None] * value[:, neuron]) - lp(x)
                values += [(float(s), layer, row, position) for position, s in enumerate(scores)]
        values = sorted(values, reverse=True)[:count]
        score = torch.zeros(dims.layers, dims.ffn, dtype=torch.float64)
        for s, layer, row, position in values:
            block = model.model.layers[layer]
            v_weight = reader(block).weight[-dims.kv_heads * dims.head_dim :]
            reads = gain(block.input_layernorm) * v_weight[row]
            for below in range(layer):
                other = model.model.layers[below]
                out = seen[below, "ffn"][position]
                value = through(norm_behind(other, "ffn"), other.mlp.down_proj.weight, out)
                score[below] += s * (reads @ (seen[below, "m"][position] * value))
        return score


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma", "gemma3_text", "phi3"])
@pytest.mark.parametrize("count", [3, 30])
def test_equals_plain_loops(make_lm, family, count):
    lm = make_lm(family, "source")
    found = locate(query_neurons, lm, EXAMPLES, "plain", QueryNeuronsConfig(values=count), per_example=True)
    gains = attribute(lm, EXAMPLES, "plain", per_example=True)
    assert torch.equal(found.neurons["attention"], gains.neurons["attention"])
    assert torch.equal(found.layers["attention"], gains.layers["attention"])
    every = [by_loops(lm, example, count) for example in EXAMPLES]
    assert any(expected.any() for expected in every), "no value neuron above the first layer"
    for e, expected in enumerate(every):
        largest = float(expected.abs().max())
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


def test_capped_logits_are_refused_by_name(make_lm):
    capped = make_lm("gemma2", "target")
    with pytest.raises(UnsupportedModelError, match=r"query_neurons .*gemma2 caps them at 6.*another method.locator"):
        locate(query_neurons, capped, EXAMPLES, "plain")
    for name in ("laten", "direct"):
        method = METHODS.get(name)
        with pytest.raises(UnsupportedModelError, match="query_neurons"):
            method.requires(make_lm("llama", "source"), capped, method.config(locator="query_neurons"))
        method.requires(make_lm("llama", "source"), capped, method.config())
    open_ended = make_lm("gemma2", "target", final_logit_softcapping=None)
    assert locate(query_neurons, open_ended, EXAMPLES, "plain").neurons["ffn"].isfinite().all()
