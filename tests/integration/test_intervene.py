"""Interventions against forward passes with edited weights, and `pkt locate --verify`."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from run_folders import message_row, write_lines

from pkt.errors import ConfigError
from pkt.extract.intervene import INTERVENTIONS, interventions, mean_and_error, probabilities, random_like
from pkt.extract.locators import LOCATORS
from pkt.extract.scores import encode_answers
from pkt.intervention import check_verifiable
from pkt.methods.laten import laten
from pkt.models.families import KINDS
from pkt.models.lm import LM
from pkt.tasks.base import Example

EXAMPLES = [
    Example(f"e{i}", p, r, r, p) for i, (p, r) in enumerate([("Where is Tom?", "In Paris."), ("A flurb", "is red")])
]


def with_edited_columns(model, lm, ids, edits):
    """The answer's probability when the last token alone meets edited columns; the tokens before it meet the model as it is.

    `edits`: (kind, layer, neuron, factor). A neuron's column times a factor is its activation times that factor.
    """
    from transformers import DynamicCache

    cache = DynamicCache()
    model(torch.tensor([ids[:-2]]), past_key_values=cache, use_cache=True)
    columns = [model.get_submodule(lm.family.module(KINDS[kind][1], layer)).weight[:, n] for kind, layer, n, _ in edits]
    before = [c.clone() for c in columns]
    for column, (*_, factor) in zip(columns, edits, strict=True):
        column.mul_(factor)
    logits = model(torch.tensor([ids[-2:-1]]), past_key_values=cache, use_cache=True).logits[0, -1]
    for column, old in zip(columns, before, strict=True):
        column.copy_(old)
    return float(logits.softmax(-1)[ids[-1]])


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "phi3"])
@torch.no_grad()
def test_equals_a_forward_pass_with_edited_weights(make_lm, family):
    lm = make_lm(family, "source")
    (ids,) = encode_answers(lm, EXAMPLES[:1], "plain")
    some = range(3, 30)
    cases = [
        [("ffn", 2, n, 0.0) for n in some],
        [("attention", 2, n, 2.0) for n in some],
        [("ffn", layer, n, 2.0) for layer in (0, 1) for n in some],
        [("attention", layer, n, 0.0) for layer in (0, 1) for n in some] + [("ffn", 1, n, 0.0) for n in some],
    ]

    def factors(edits):
        found = {kind: [([], 1.0) for _ in range(lm.dims.layers)] for kind in KINDS}
        for kind, layer, neuron, factor in edits:
            found[kind][layer] = ([*found[kind][layer][0], neuron], factor)
        return found

    with lm.loaded() as model:
        found = probabilities(model, lm, ids, [{}, *map(factors, cases)])
        untouched = with_edited_columns(model, lm, ids, [])
        expected = [with_edited_columns(model, lm, ids, edits) for edits in cases]
        assert not any(m._forward_pre_hooks for m in model.modules())
    torch.testing.assert_close(found, torch.tensor([untouched, *expected]), rtol=1e-4, atol=1e-12)
    assert all(abs(p / untouched - 1) > 1e-2 for p in expected)  # the edits matter


@torch.no_grad()
def test_the_whole_batch_is_what_each_intervention_gives_alone(make_lm):
    lm = make_lm("llama", "source")
    sets = [
        {"ffn": [[*range(20)], [], [*range(9, 19)]], "attention": [[], [*range(30)], []]},
        {"ffn": [[], [], []], "attention": [[0], [*range(12, 40)], [2]]},
    ]
    before, changes = interventions(lm, EXAMPLES, "plain", sets, torch.Generator().manual_seed(3))
    assert [(c.kind, c.intervention) for c in changes] == [(k, i) for k in KINDS for i in INTERVENTIONS]
    assert [c.neurons for c in changes] == [15.0, 15.0, 30.0, 30.0]
    gen = torch.Generator().manual_seed(3)
    with lm.loaded() as model:
        for e, ids in enumerate(encode_answers(lm, EXAMPLES, "plain")):
            drawn = random_like(sets[e], lm.dims, gen)
            assert [[len(i) for i in drawn[k]] for k in KINDS] == [[len(i) for i in sets[e][k]] for k in KINDS]
            assert float(before[e]) == pytest.approx(with_edited_columns(model, lm, ids, []), rel=1e-3)
            for change in changes:
                for of, which in ((sets[e], change.located), (drawn, change.random)):
                    edits = [
                        (change.kind, layer, n, INTERVENTIONS[change.intervention])
                        for layer, index in enumerate(of[change.kind])
                        for n in index
                    ]
                    expected = with_edited_columns(model, lm, ids, edits)
                    assert float(before[e] + which[e]) == pytest.approx(expected, rel=1e-4)
    assert not changes[0].located[1]  # no FFN neuron in the second example


def test_mean_and_error():
    assert mean_and_error(torch.tensor([1.0, 2.0, 3.0])) == (2.0, pytest.approx(1 / 3**0.5))
    assert mean_and_error(torch.tensor([1.0])) == (1.0, None)


@pytest.mark.parametrize("locator", LOCATORS.names())
def test_every_locator_plans_locates_and_verifies(pkt, recipe, data, tmp_path, monkeypatch, locator):
    rows = [{**message_row("flurbs", i), "paraphrases": [f"What do {i} flurbs cost?"]} for i in (1, 2)]
    write_lines(data / "splits" / "gsm8k" / "extract.jsonl", rows)
    path = recipe(task={"name": "gsm8k", "data": str(data), "prompt_style": "plain"})
    change = ("--set", f"method.locator={locator}")
    assert "locate in the source" in pkt("plan", path, *change).out
    done = pkt("locate", path, *change, "--out", tmp_path / "out", "--verify")
    assert done.code == 0, done.err
    lines = [line.split() for line in done.out.splitlines()]
    assert lines[0] == ["model", "kind", "intervention", "located", "random", "neurons"]
    assert [line[:3] for line in lines[1:9]] == [
        [model, kind, name] for model in ("source", "target") for kind in KINDS for name in INTERVENTIONS
    ]
    found = json.loads((tmp_path / "out" / "neurons" / "verification.json").read_text())
    assert (found["examples"], found["locator"], len(found["rows"])) == (2, locator, 8)
    if locator != "knowledge_neurons":  # rate 0.1 of 56 and 32 in each of two layers
        assert [row["neurons"] for row in found["rows"]] == [10, 10, 6, 6] * 2
    with monkeypatch.context() as patch:
        patch.setattr(LM, "_load", lambda self: pytest.fail("loaded again"))
        again = pkt("locate", path, *change, "--out", tmp_path / "out", "--verify")
    assert (again.code, again.out) == (0, done.out)
    if locator == "sensitivity":
        finished = pkt("run", path, *change, "--set", "evaluate.arms=[]", "--out", tmp_path / "out")
        assert finished.code == 0, finished.err


def test_what_cannot_be_verified_is_said(pkt, recipe, tmp_path):
    for options in ("method.locator=random", "method.neurons=random"):
        done = pkt("locate", recipe(), "--set", options, "--out", tmp_path / options, "--verify")
        assert done.code == 2
        assert "neurons are drawn at random here" in done.err
        assert not (tmp_path / options / "neurons").exists()
    with pytest.raises(ConfigError, match="'laten' locates nothing, so there is nothing to verify; leave --verify out"):
        check_verifiable(SimpleNamespace(method=replace(laten, locate=None)))
    with pytest.raises(ConfigError, match="'laten' locates, but not neurons"):
        check_verifiable(SimpleNamespace(method=replace(laten, located_neurons=None)))


def test_a_paraphrase_that_is_too_long_is_found_before_any_weight_is_read(pkt, recipe, data, tmp_path, monkeypatch):
    rows = [{**message_row("flurbs", 1), "paraphrases": ["flurbs " * 600]}]
    write_lines(data / "splits" / "gsm8k" / "extract.jsonl", rows)
    path = recipe(task={"name": "gsm8k", "data": str(data), "prompt_style": "plain"})
    monkeypatch.setattr(LM, "_load", lambda self: pytest.fail("loaded"))
    done = pkt("locate", path, "--set", "method.locator=knowledge_neurons", "--out", tmp_path / "out")
    assert done.code == 2
    assert "wording 1 has" in done.err
    assert "the context holds 512" in done.err
