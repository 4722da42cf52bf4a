"""Locators by name: the table, LaTen's options, and what decides that something is located anew."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_laten import TUNED, make_task, transfer

from pkt.config import validate
from pkt.errors import ConfigError
from pkt.extract.location import attributions
from pkt.extract.locators import LOCATORS, examples_for, locator_of, scores_key
from pkt.extract.scores import Locator, encode_answers, locate
from pkt.methods.laten import LatenConfig, laten
from pkt.models.families import KINDS
from pkt.nano import world
from pkt.tasks.base import Task
from pkt.tasks.formats import FORMATS
from pkt.tasks.sources import task


def test_the_table_names_locators_whose_options_laten_has():
    for name in LOCATORS.names():
        locator = LOCATORS.get(name)
        assert isinstance(locator, Locator)
        assert locator.name == name
        if locator.section:
            assert isinstance(getattr(LatenConfig(), locator.section), locator.config)
    with pytest.raises(
        ConfigError, match="method.locator: found 'sensitivty'; no such locator; did you mean 'sensitivity'"
    ):
        validate(LatenConfig, {"locator": "sensitivty"}, "recipe r", "method")


@pytest.mark.parametrize("name", LOCATORS.names())
def test_laten_uses_it_and_leaves_the_models_as_they_were(make_lm, name):
    source, target = make_lm("qwen2", "source"), make_lm("llama", "target")
    with source.loaded() as one, target.loaded() as two:
        before = [v.clone() for m in (one, two) for v in m.state_dict().values()]
        first, again = (transfer(source, target, locator=name) for _ in range(2))
        after = [v for m in (one, two) for v in m.state_dict().values()]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        for model in (one, two):
            assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    plain = transfer(source, target)
    for key, change in first.changes.items():
        assert torch.equal(change.entries(), again.changes[key].entries())
    same = all(torch.equal(plain.changes[k].index, c.index) for k, c in first.changes.items())
    assert same == (name == "logprob_gain")


def test_random_neurons_keep_the_layers_of_the_locator(make_lm):
    source, target = make_lm("llama", "source"), make_lm("llama", "target")
    made = {
        options: transfer(source, target, **dict(options)).provenance["layers"]
        for options in (
            (("locator", "sensitivity"),),
            (("locator", "sensitivity"), ("neurons", "random")),
            (("locator", "random"),),
            (("neurons", "random"),),
            (),
        )
    }
    scored, drawn, random, plain_drawn, plain = made.values()
    assert drawn == scored
    assert random == plain_drawn == plain
    assert scored["ffn"]["source_scores"] != plain["ffn"]["source_scores"]


@pytest.mark.parametrize("name", LOCATORS.names())
def test_per_example_scores_sum_to_the_summed(make_lm, name):
    lm, examples = make_lm("llama", "target"), make_task().location
    locator = LOCATORS.get(name)
    apart, summed = (locate(locator, lm, examples, "plain", per_example=p) for p in (True, False))
    for kind in KINDS:
        assert apart.neurons[kind].shape == (3, lm.dims.layers, lm.dims.neurons(kind))
        assert apart.neurons[kind].dtype == apart.layers[kind].dtype == torch.float32
        torch.testing.assert_close(apart.neurons[kind].sum(0, keepdim=True), summed.neurons[kind])
        torch.testing.assert_close(apart.layers[kind].sum(0, keepdim=True), summed.layers[kind])


def test_the_memo_is_read_for_the_same_locator_and_version_alone(make_lm, tmp_path, monkeypatch):
    lm, examples = make_lm("llama", "target"), make_task().location
    lm.memo = tmp_path
    locator, calls = LOCATORS.get("sensitivity"), []

    def score(*args):
        calls.append(args)
        return locator.score(*args)

    counted = replace(locator, score=score)
    for other in (counted, counted, replace(counted, version=2), replace(counted, name="another")):
        locate(other, lm, examples, "plain")
    assert len(calls) == 3
    monkeypatch.undo()


def test_keys_tell_locators_versions_and_paraphrases_apart(monkeypatch):
    nano = task("nano/mmlu")
    keys = [scores_key(nano, LatenConfig(locator=name)) for name in LOCATORS.names()]
    assert len({str(key) for key in keys}) == len(keys)
    knowledge = LatenConfig(locator="knowledge_neurons")
    first = scores_key(nano, knowledge)
    asked = examples_for(nano, locator_of(knowledge))
    assert sum(len(e.wordings) for e in asked) == sum(len(nano.paraphrases(e)) for e in nano.location) > 0
    assert scores_key(replace(nano, rephrase=lambda e: []), knowledge) != first
    assert scores_key(replace(nano, rephrase=lambda e: []), LatenConfig()) == scores_key(nano, LatenConfig())
    options = [LatenConfig(**{"locator": name.replace("attribution", "logprob_gain"), name: {option: value}}) for name, option, value in (
        ("knowledge_neurons", "steps", 5), ("knowledge_neurons", "threshold", 0.1), ("knowledge_neurons", "share", 0.9),
        ("query_neurons", "values", 5), ("attribution", "positions", "last"),
    )]  # fmt: skip
    located = [laten.location_key(nano, cfg) for cfg in (LatenConfig(), LatenConfig(locator="sensitivity"), *options)]
    assert len({str(key) for key in located}) == len(located)


def test_a_delta_names_the_locator_of_its_layers(tiny_source, tiny_target):
    for name, said in (("logprob_gain", None), ("random", None), ("sensitivity", "sensitivity")):
        layers = transfer(tiny_source, tiny_target, locator=name).provenance["layers"]
        assert {part.get("locator") for part in layers.values()} == {said}


def test_paraphrases_are_asked_in_the_style_of_their_format(make_lm):
    """MMLU's plain style is no rearrangement of the user's text: a paraphrase is laid out anew."""
    lm, form = make_lm("llama", "target"), FORMATS["mmlu"]
    user = {
        "role": "user",
        "content": "The following are multiple choice questions (with answers) about physics.\n\nWhat falls?\nA. up\nB. down\nC. left\nD. right\nAnswer:",
    }
    row = {
        "messages": [user, {"role": "assistant", "content": "The answer is: B"}],
        "paraphrases": ["Where to? Answer:"],
    }
    made = Task("mmlu", form, lambda split: [form.from_messages(row, "x:1")] if split == "extract" else [], "toy")
    locator = LOCATORS.get("knowledge_neurons")
    ((first, other),) = locator.encode(lm, examples_for(made, locator), "plain")
    assert first != other
    assert "Where to?" in lm.tokenizer.decode(other)


def test_knowledge_neurons_ask_the_paraphrases_of_a_nano_task(make_lm):
    """The scores of a method on a nano task are those of its examples with their wordings, and never of a test prompt."""
    lm, nano = make_lm("llama", "target"), task("nano/mmlu")
    few = nano.located_with(nano.split("extract")[:2])
    cfg = LatenConfig(**TUNED, locator="knowledge_neurons", knowledge_neurons={"steps": 2})
    found, _ = attributions(lm, lm, few, cfg, "plain")
    asked = examples_for(few, locator_of(cfg))
    expected = locate(locator_of(cfg), lm, asked, "plain", cfg.knowledge_neurons)
    assert torch.equal(found.neurons["ffn"], expected.neurons["ffn"])
    held = world.heldout_prompts("mmlu")
    assert not held & {other.prompt for e in asked for other in e.wordings}
    assert encode_answers(lm, asked, "plain")
