"""The arms of a certificate: what the method gets in each, at one seed and learning rate."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from test_laten import TUNED, examples, gen, make_task

from pkt.certify.arms import ARMS, LOCATOR_ARMS, REAL, SOURCE_ARMS, Setting, kind, missing, transfer
from pkt.inject.delta import Delta
from pkt.methods.laten import LatenConfig, laten
from pkt.models.controls import RandomSource, ShuffledSource

CONFIG = LatenConfig(**TUNED)


@pytest.fixture(scope="module")
def setting(make_lm) -> Setting:
    source, target = make_lm("llama", "source"), make_lm("llama", "target")
    return Setting(laten, source, target, make_task(), "plain", examples("snarks", 3))


@pytest.fixture(scope="module")
def made(setting) -> dict[str, Delta]:
    return {arm: transfer(arm, setting, CONFIG, 5) for arm in ARMS}


def values(delta: Delta) -> list[torch.Tensor]:
    return [tensor for key in sorted(delta.changes) for tensor in delta.changes[key].tensors().values()]


def same(one: Delta, two: Delta) -> bool:
    return all(torch.equal(a, b) for a, b in zip(values(one), values(two), strict=True))


def test_no_two_arms_are_the_same(made):
    assert [arms for arms in combinations(ARMS, 2) if same(made[arms[0]], made[arms[1]])] == []


def test_each_arm_is_the_method_with_something_else_in_the_place_of_the_source(setting, made):
    def by(source, task=setting.task, **options) -> Delta:
        return laten(source, setting.target, task, CONFIG.model_copy(update=options), gen(5), style="plain")

    expected = {
        "real_source": by(setting.source),
        "random_source": by(RandomSource(setting.source, 5)),
        "shuffled_source": by(ShuffledSource(setting.source, 5)),
        "self_source": by(setting.target),
        "random_neurons": by(setting.source, locator="random"),
        "wrong_task": by(setting.source, setting.task.located_with(setting.wrong_examples)),
    }
    assert [arm for arm, delta in expected.items() if not same(made[arm], delta)] == []


def test_source_arms_write_where_the_method_writes(made):
    for arm in SOURCE_ARMS:
        for key, change in made[REAL].changes.items():
            assert torch.equal(made[arm].changes[key].index, change.index)
    for arm in LOCATOR_ARMS:
        assert any(
            not torch.equal(made[arm].changes[key].index, change.index) for key, change in made[REAL].changes.items()
        )


def test_layers_go_by_the_real_source_where_there_is_one(made):
    maps = {arm: {k: v["map"] for k, v in delta.provenance["layers"].items()} for arm, delta in made.items()}
    assert maps["random_source"] == maps["shuffled_source"] == maps["random_neurons"] == maps[REAL]
    assert maps["self_source"]["ffn"] == maps["no_source"]["ffn"] == [[0, 0], [1, 1]]


def test_another_seed_is_another_delta(setting, made):
    assert same(transfer(REAL, setting, CONFIG, 5), made[REAL])
    for arm in ("random_source", "shuffled_source", "random_neurons"):
        assert not same(transfer(arm, setting, CONFIG, 6), made[arm])


def test_what_a_method_lacks():
    def lacks(**changes: object) -> dict[str, str]:
        method = replace(laten, **changes)
        return {
            arm: reason for arm in ARMS if arm != REAL and (reason := missing(method, CONFIG, arm, has_wrong_task=True))
        }

    assert lacks() == {}
    assert lacks(no_source=None, learning_rate=None) == {"no_source": "laten does nothing without a source"}
    with pytest.raises(TypeError, match="declare `no_source`, or say in `without` why it has none"):
        lacks(no_source=None)
    assert lacks(random_neurons=None) == {"random_neurons": "laten chooses no neurons"}
    assert lacks(locate=None) == {"wrong_task": "laten locates nothing"}
    assert lacks(without={"self_source": "no reason"}) == {"self_source": "no reason"}
    assert lacks(reads_source=False) == dict.fromkeys(SOURCE_ARMS, "laten reads no source")
    assert missing(laten, CONFIG, "wrong_task", has_wrong_task=False) == (
        "no other task was named: set certificate.wrong_task"
    )
    assert {arm: kind(arm) for arm in (REAL, "no_source", "wrong_task")} == {
        REAL: "real",
        "no_source": "source",
        "wrong_task": "locator",
    }
