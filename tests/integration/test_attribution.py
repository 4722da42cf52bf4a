"""Attribution against the one-neuron loop, and against a real forward pass with the other neurons silenced."""

from __future__ import annotations

import pytest
import torch

from pkt.extract import attribution
from pkt.extract.attribution import AttributionConfig, attribute
from pkt.extract.neurons import ranked
from pkt.models.families import FAMILIES as ROWS
from pkt.models.families import KINDS
from pkt.tasks.base import Example
from pkt.tasks.prompts import encode, strip_trailing

FAMILIES = list(ROWS)
EXAMPLES = [
    Example(id=f"e{i}", prompt=p, response=r, answer=r, unit=p)
    for i, (p, r) in enumerate(
        [("Where does Tom live?", "In Paris."), ("What is 3 times 4?", "It is 12."), ("A flurb is red", "yes")]
    )
]


def ids_of(lm, example):
    return strip_trailing(encode(example, "plain", lm.tokenizer), lm.tokenizer, example)


def gain(norm):
    """What a norm multiplies its scaled input with."""
    return norm.weight + ("Gemma" in type(norm).__name__)


def norm_behind(block, kind):
    """The norm between a block of a Gemma 2 or 3 layer and the residual stream."""
    if not hasattr(block, "post_feedforward_layernorm"):
        return None
    return block.post_attention_layernorm if kind == "attention" else block.post_feedforward_layernorm


def logprob(model, state_D, answer):
    """Of the answer, for a state behind the final norm; logits capped as the config says."""
    logits = model.lm_head(state_D)
    cap = getattr(model.config, "final_logit_softcapping", None)
    return (cap * torch.tanh(logits / cap) if cap else logits).log_softmax(-1)[answer]


def walk(model, ids):
    """Residual streams, writes and neuron inputs at the last position, as the model has them in its own dtype."""
    seen, handles = {}, []
    for i, block in enumerate(model.model.layers):
        handles += [
            block.register_forward_pre_hook(lambda _m, a, i=i: seen.update({(i, "x"): a[0][0, -1]})),
            block.self_attn.register_forward_hook(lambda _m, _a, r, i=i: seen.update({(i, "attention"): r[0][0, -1]})),
            block.mlp.register_forward_hook(lambda _m, _a, r, i=i: seen.update({(i, "ffn"): r[0, -1]})),
            block.self_attn.o_proj.register_forward_pre_hook(lambda _m, a, i=i: seen.update({(i, "o"): a[0][0, -1]})),
            block.mlp.down_proj.register_forward_pre_hook(lambda _m, a, i=i: seen.update({(i, "m"): a[0][0, -1]})),
        ]
    handles.append(model.model.norm.register_forward_pre_hook(lambda _m, a: seen.update(h=a[0][0, -1])))
    with torch.no_grad():
        model(torch.tensor([ids[:-1]]))
    for handle in handles:
        handle.remove()
    for i, block in enumerate(model.model.layers):
        for kind, write in (("attention", "a"), ("ffn", "f")):
            norm, out = norm_behind(block, kind), seen[i, kind]
            seen[i, kind, "scale"] = torch.rsqrt(out.pow(2).mean() + model.config.rms_norm_eps) if norm else 1.0
            seen[i, write] = norm(out) if norm else out
    return seen


def one_by_one(lm, example):
    """Scores of all layers and neurons of one example, each by its own pair of log-probabilities, in float64."""
    ids = ids_of(lm, example)
    with lm.loaded() as model, torch.no_grad():
        model.double()
        seen = walk(model, ids)
        scale = torch.rsqrt(seen["h"].pow(2).mean() + lm.dims.norm_eps)

        def lp(state):
            return logprob(model, state * scale * gain(model.model.norm), ids[-1])

        layers, neurons = {k: [] for k in KINDS}, {k: [] for k in KINDS}
        for i, block in enumerate(model.model.layers):
            x, r = seen[i, "x"], seen[i, "x"] + seen[i, "a"]
            layers["attention"].append(lp(r) - lp(x))
            layers["ffn"].append(lp(r + seen[i, "f"]) - lp(r))
            for kind, base, act, weight in (
                ("attention", x, seen[i, "o"], block.self_attn.o_proj.weight),
                ("ffn", r, seen[i, "m"], block.mlp.down_proj.weight),
            ):
                norm = norm_behind(block, kind)
                value = weight * gain(norm)[:, None] * seen[i, kind, "scale"] if norm else weight
                neurons[kind].append(torch.stack([lp(base + act[j] * value[:, j]) - lp(base) for j in range(len(act))]))
        return {k: torch.stack(v) for k, v in layers.items()}, {k: torch.stack(v) for k, v in neurons.items()}


BIASED = [("llama", {"attention_bias": True, "mlp_bias": True}), ("gemma2", {"attention_bias": True})]


@pytest.mark.parametrize(("family", "more"), [*((family, {}) for family in FAMILIES), *BIASED])
def test_equals_the_one_neuron_loop(make_lm, family, more):
    role = "target" if family in ("mistral", "qwen3", "gemma") else "source"
    lm = make_lm(family, role, **more)
    found = attribute(lm, EXAMPLES, "plain", per_example=True)
    for e, example in enumerate(EXAMPLES):
        layers, neurons = one_by_one(lm, example)
        for kind in KINDS:
            torch.testing.assert_close(found.layers[kind][e].double(), layers[kind], rtol=1e-4, atol=2e-5)
            torch.testing.assert_close(found.neurons[kind][e].double(), neurons[kind], rtol=1e-4, atol=2e-5)
            assert torch.equal(ranked(found.neurons[kind][e], 5)[0], ranked(neurons[kind], 5)[0])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_in_the_last_layer_equals_a_forward_pass_with_the_others_silenced(make_lm, family, kind):
    """The scales of the final norm, and of one between the block and the residual stream, are held at their unedited values by hooks; for
    attention the last FFN is silenced too."""
    lm = make_lm(family, "target")
    example = EXAMPLES[0]
    ids = ids_of(lm, example)
    found = attribute(lm, [example], "plain").neurons[kind][0, -1]
    with lm.loaded() as model, torch.no_grad():
        seen = walk(model, ids)
        scale = torch.rsqrt(seen["h"].pow(2).mean() + lm.dims.norm_eps)
        last = model.model.layers[-1]
        writer = last.mlp.down_proj if kind == "ffn" else last.self_attn.o_proj
        alive = torch.zeros(len(found))
        # a pre-hook cannot hold the scale, so the norm's result is replaced
        handles = [
            model.model.norm.register_forward_hook(lambda m, a, _r: a[0] * scale * gain(m)),
            writer.register_forward_pre_hook(lambda _m, a: (a[0] * alive,)),
        ]
        if behind := norm_behind(last, kind):
            held = seen[lm.dims.layers - 1, kind, "scale"]
            handles.append(behind.register_forward_hook(lambda m, a, _r: a[0] * held * gain(m)))
        if kind == "attention":
            handles.append(last.mlp.register_forward_hook(lambda _m, _a, r: torch.zeros_like(r)))

        def lp():
            return model(torch.tensor([ids[:-1]])).logits[0, -1].log_softmax(-1)[ids[-1]]

        silent = lp()
        for j in range(0, len(found), 3):
            alive.zero_()
            alive[j] = 1
            assert float(lp() - silent) == pytest.approx(float(found[j]), rel=1e-3, abs=2e-5)
        for handle in handles:
            handle.remove()


def test_models_are_unchanged(tiny_target):
    def hooks(model):
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

    with tiny_target.loaded() as model:
        before = {k: v.clone() for k, v in model.state_dict().items()}
        attribute(tiny_target, EXAMPLES, "plain", AttributionConfig(positions="last"))
        count = hooks(model)  # transformers keeps its own hooks once attention weights were asked for
        attribute(tiny_target, EXAMPLES, "plain")
        assert hooks(model) == count
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        assert model.config._attn_implementation == "sdpa"


def test_groups_of_examples_do_not_matter(tiny_target):
    whole = attribute(tiny_target, EXAMPLES, "plain", per_example=True)
    small = attribute(tiny_target, EXAMPLES, "plain", per_example=True, memory=1 << 14)
    summed = attribute(tiny_target, EXAMPLES, "plain")
    for kind in KINDS:
        torch.testing.assert_close(small.neurons[kind], whole.neurons[kind], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(summed.neurons[kind], whole.neurons[kind].sum(0, keepdim=True))
        torch.testing.assert_close(whole.example(1).neurons[kind][0], whole.neurons[kind][1])


def test_released_scale_takes_the_root_of_the_deviation(tiny_target):
    """The published defect: the inverse root of a standard deviation instead of a mean square."""
    ids = ids_of(tiny_target, EXAMPLES[0])
    exact = attribute(tiny_target, EXAMPLES[:1], "plain")
    released = attribute(tiny_target, EXAMPLES[:1], "plain", AttributionConfig(scale="released"))
    with tiny_target.loaded() as model, torch.no_grad():
        seen = walk(model, ids)
        scale = torch.rsqrt(seen["h"].pow(2).mean().sqrt() + tiny_target.dims.norm_eps)

        def lp(state):
            return model.lm_head(state * scale * model.model.norm.weight).log_softmax(-1)[ids[-1]]

        want = lp(seen[1, "x"] + seen[1, "a"]) - lp(seen[1, "x"])
    assert float(released.layers["attention"][0, 1]) == pytest.approx(float(want), abs=1e-4)
    assert float(exact.layers["attention"][0, 1]) != pytest.approx(float(want), abs=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_last_position_drops_the_other_keys(make_lm, family):
    """`positions: last` equals a run in which every query sees its own key alone, for the last layer's o."""
    lm = make_lm(family, "target")
    ids = ids_of(lm, EXAMPLES[0])
    last = attribute(lm, EXAMPLES[:1], "plain", AttributionConfig(positions="last")).neurons["attention"]
    every = attribute(lm, EXAMPLES[:1], "plain").neurons["attention"]
    assert (last - every).abs().max() > 1e-3
    with lm.loaded() as model, torch.no_grad():
        model.set_attn_implementation("eager")
        result = model(torch.tensor([ids[:-1]]), output_attentions=True)
        values = {}
        attention, size = model.model.layers[1].self_attn, lm.dims.kv_heads * lm.dims.head_dim
        reader = (
            attention.qkv_proj if family == "phi3" else attention.v_proj
        )  # the last rows of the one are those of the other
        reader.register_forward_hook(lambda _m, _a, r: values.update(v=r[0, -1, -size:]))
        model(torch.tensor([ids[:-1]]))
        seen = walk(model, ids)
        scale = torch.rsqrt(seen["h"].pow(2).mean() + lm.dims.norm_eps)
        weight = result.attentions[1][0, :, -1, -1]

        def lp(state):
            return logprob(model, state * scale * gain(model.model.norm), ids[-1])

        value = attention.o_proj.weight
        if norm := norm_behind(model.model.layers[1], "attention"):
            value = value * gain(norm)[:, None] * seen[1, "attention", "scale"]
        for j in (0, 5, lm.dims.attention - 1):
            o = weight[j // lm.dims.head_dim] * values["v"][lm.dims.v_row(j)]
            want = lp(seen[1, "x"] + o * value[:, j]) - lp(seen[1, "x"])
            assert float(last[0, 1, j]) == pytest.approx(float(want), rel=1e-3, abs=2e-5)


def test_scores_are_kept_and_read_back(make_lm, tmp_path, monkeypatch):
    lm = make_lm("llama", "target")
    lm.memo = tmp_path / "neurons"
    first = attribute(lm, EXAMPLES, "plain")
    monkeypatch.setattr(attribution, "_score", None)  # a second computation would fail
    again = attribute(lm, EXAMPLES, "plain")
    assert all(torch.equal(first.neurons[k], again.neurons[k]) for k in KINDS)
    with pytest.raises(TypeError):
        attribute(lm, EXAMPLES[:2], "plain")
