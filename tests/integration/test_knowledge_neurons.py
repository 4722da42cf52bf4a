"""Knowledge neurons against captum, on whole forward passes of stock models."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from captum.attr import IntegratedGradients

from pkt.extract.knowledge_neurons import KnowledgeNeuronsConfig, integrated_gradients, knowledge_neurons, refined
from pkt.extract.scores import encode_answers, locate
from pkt.models.families import KINDS
from pkt.models.lm import LM
from pkt.tasks.base import Example

EXAMPLE = Example("e", "Where does Tom live?", "In Paris.", "In Paris.", "Tom")
OTHERS = tuple(
    replace(EXAMPLE, prompt=text) for text in ("Which city does Tom live in?", "In which city is the home of Tom?")
)


def captum(model, lm, ids, kind, layer, steps=20):
    """Attributions of one layer's neurons by captum, each step a whole forward pass."""
    module = model.get_submodule(lm.family.module(KINDS[kind][1], layer))
    context = torch.tensor([ids[:-1]])

    def probability(act_RN):
        def hook(_module, args):
            changed = args[0].clone()
            changed[:, -1] = act_RN
            return (changed,)

        handle = module.register_forward_pre_hook(hook)
        try:
            logits = model(context.expand(len(act_RN), -1)).logits[:, -1]
        finally:
            handle.remove()
        return logits.softmax(-1)[:, ids[-1]]

    seen = []
    handle = module.register_forward_pre_hook(lambda _m, args: seen.append(args[0][:, -1].detach()))
    model(context)
    handle.remove()
    return IntegratedGradients(probability).attribute(
        seen[0], baselines=torch.zeros_like(seen[0]), n_steps=steps, method="riemann_right"
    )[0]


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("llama", {}),
        ("qwen2", {}),
        ("mistral", {"sliding_window": 4}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
        ("gemma2", {"sliding_window": 4}),
        ("gemma3_text", {"sliding_window": 4}),
        ("phi3", {"sliding_window": 4}),
    ],
)
def test_equals_captum(make_lm, family, more):
    lm = make_lm(family, "source", **more)
    (ids,) = encode_answers(lm, [EXAMPLE], "plain")
    assert len(ids) > 8  # longer than the sliding windows
    with lm.loaded() as model:
        found = integrated_gradients(model, lm, ids, 20)
        for kind in KINDS:
            assert found[kind].shape == (lm.dims.layers, lm.dims.neurons(kind))
            for layer in range(lm.dims.layers):
                expected = captum(model, lm, ids, kind, layer)
                assert float(expected.abs().max()) > 0
                torch.testing.assert_close(
                    found[kind][layer], expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max())
                )


def test_few_copies_at_a_time_and_another_number_of_steps(make_lm):
    lm = make_lm("llama", "source")
    (ids,) = encode_answers(lm, [EXAMPLE], "plain")
    with lm.loaded() as model:
        whole, small = integrated_gradients(model, lm, ids, 7), integrated_gradients(model, lm, ids, 7, memory=1)
        expected = captum(model, lm, ids, "ffn", 1, steps=7)
        assert not any(m._forward_pre_hooks for m in model.modules())
        assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    largest = {kind: float(whole[kind].abs().max()) for kind in KINDS}
    for kind in KINDS:
        torch.testing.assert_close(small[kind], whole[kind], rtol=1e-3, atol=1e-4 * largest[kind])
    torch.testing.assert_close(whole["ffn"][1], expected, rtol=1e-3, atol=1e-4 * largest["ffn"])


def test_a_single_token_before_the_answer(make_lm):
    lm = make_lm("llama", "source")
    with lm.loaded() as model:
        found = integrated_gradients(model, lm, [7, 9], 20)
        torch.testing.assert_close(found["ffn"][0], captum(model, lm, [7, 9], "ffn", 0), rtol=1e-3, atol=1e-7)


def test_low_precision_stays_near(make_lm):
    lm = make_lm("llama", "source")
    (ids,) = encode_answers(lm, [EXAMPLE], "plain")
    low = LM(lm.name, device="cpu", dtype="bfloat16")
    with lm.loaded() as one, low.loaded() as two:
        wide, narrow = integrated_gradients(one, lm, ids, 20), integrated_gradients(two, low, ids, 20)
    assert torch.corrcoef(torch.stack([wide["ffn"].flatten(), narrow["ffn"].flatten()]))[0, 1] > 0.9


def test_a_fact_has_the_mean_of_its_prompts_and_what_they_share(make_lm):
    lm, cfg = make_lm("llama", "source"), KnowledgeNeuronsConfig(threshold=0.2, share=0.6)
    fact = replace(EXAMPLE, wordings=OTHERS)
    found = locate(knowledge_neurons, lm, [fact, EXAMPLE], "plain", cfg, per_example=True)
    prompts = [EXAMPLE, *OTHERS]
    with lm.loaded() as model:
        single = [integrated_gradients(model, lm, ids, 20) for ids in encode_answers(lm, prompts, "plain")]
    for kind in KINDS:
        of_prompts = torch.stack([f[kind] for f in single])
        torch.testing.assert_close(found.neurons[kind], torch.stack([of_prompts.mean(0), of_prompts[0]]))
        torch.testing.assert_close(found.layers[kind], found.neurons[kind].sum(-1))
        strong = torch.stack([f > 0.2 * f.max() for f in of_prompts])
        assert torch.equal(found.refined[kind][0], strong.sum(0) >= 2)
        assert torch.equal(found.refined[kind][1], strong[0])
    summed = locate(knowledge_neurons, lm, [fact, EXAMPLE], "plain", cfg)
    assert summed.neurons["ffn"].shape[0] == 1
    assert torch.equal(summed.refined["ffn"], found.refined["ffn"])


def test_refinement_by_hand():
    scores = torch.tensor([[[10.0, 4.0, 3.0, -9.0]], [[1.0, 0.2, 0.31, 0.5]]])  # two prompts, one layer
    cfg = KnowledgeNeuronsConfig(threshold=0.3)
    assert refined(scores, cfg).tolist() == [[True, True, True, True]]
    assert refined(scores, cfg.model_copy(update={"share": 1.0})).tolist() == [[True, False, False, False]]
    assert refined(-scores.abs(), cfg).tolist() == [[False] * 4]


def test_a_layer_score_is_what_silencing_the_layer_costs(make_lm):
    """Up to the Riemann sum, which many steps make fine."""
    lm = make_lm("llama", "source")
    (ids,) = encode_answers(lm, [EXAMPLE], "plain")
    with lm.loaded() as model:
        found = integrated_gradients(model, lm, ids, 300)["ffn"].sum(-1)
        for layer in range(lm.dims.layers):

            def silence(_module, args):
                changed = args[0].clone()
                changed[:, -1] = 0
                return (changed,)

            before = model(torch.tensor([ids[:-1]])).logits[0, -1].softmax(-1)[ids[-1]]
            handle = model.get_submodule(lm.family.module("down", layer)).register_forward_pre_hook(silence)
            after = model(torch.tensor([ids[:-1]])).logits[0, -1].softmax(-1)[ids[-1]]
            handle.remove()
            assert float(found[layer]) == pytest.approx(float(before - after), rel=0.05, abs=1e-6)


def test_kept_between_runs_with_what_was_refined(make_lm, tmp_path, monkeypatch):
    lm = make_lm("llama", "target")
    lm.memo = tmp_path
    fact = replace(EXAMPLE, wordings=OTHERS[:1])
    first = locate(knowledge_neurons, lm, [fact], "plain")
    monkeypatch.setattr(LM, "_load", lambda self: pytest.fail("loaded again"))
    again = locate(knowledge_neurons, lm, [fact], "plain")
    for kind in KINDS:
        assert torch.equal(again.neurons[kind], first.neurons[kind])
        assert torch.equal(again.refined[kind], first.refined[kind])
    for changed in (
        {"examples": [replace(fact, wordings=())]},
        {"cfg": KnowledgeNeuronsConfig(steps=3)},
        {"per_example": True},
    ):
        with pytest.raises(pytest.fail.Exception, match="loaded again"):
            locate(knowledge_neurons, lm, **{"examples": [fact], "style": "plain", **changed})
