"""The nano world: splits that cannot leak, tiers of the promised size, chance."""

from __future__ import annotations

import hashlib
import itertools
import json

import pytest

from pkt.nano import world
from pkt.tasks.sources import task

TASKS = pytest.mark.parametrize("name", world.TASKS)


def prompts(rows):
    return [row["messages"][0]["content"] for row in rows]


@TASKS
def test_splits_have_the_promised_sizes(name):
    splits = world.splits(name)
    assert {s: len(rows) for s, rows in splits.items() if s != "test"} == {
        "extract": 20,
        "align": 80,
        "train": 300,
        "valid": 60,
    }
    tiers = {tier: [row for row in splits["test"] if row["tier"] == tier] for tier in world.TIERS}
    assert all(tiers.values())
    assert len(tiers["new"]) >= 300
    assert len({row["unit"] for row in tiers["new"]}) >= 100


@TASKS
def test_no_prompt_stands_twice(name):
    every = [p for rows in world.splits(name).values() for p in prompts(rows)]
    assert len(every) == len(set(every))


@TASKS
def test_no_unit_is_in_two_splits(name):
    units = {s: {row["unit"] for row in rows} for s, rows in world.splits(name).items() if s != "test"}
    for one, two in itertools.combinations(units, 2):
        assert not units[one] & units[two]


@TASKS
def test_tiers_are_what_they_say(name):
    splits = world.splits(name)
    known = {u for g in world.KNOWN_GROUPS for u in world.table(name).groups[g]}
    for row in splits["test"]:
        elsewhere = [s for s in ("extract", "align", "train", "valid") if row["unit"] in {r["unit"] for r in splits[s]}]
        assert elsewhere == {"located": ["extract"], "aligned": ["align"]}.get(row["tier"], [])
        assert (row["unit"] in known) == (row["tier"] in ("known", "skill"))


@TASKS
def test_models_are_trained_on_no_prompt_of_a_split(name):
    held = world.heldout_prompts(name)
    for skill in (False, True):
        rows = [
            r for unit in world.training_rows(name, tuple(world.GROUPS), skill=skill) for asked in unit for r in asked
        ]
        assert rows
        assert not held & set(prompts(rows))


@TASKS
def test_the_target_is_told_nothing_about_new_units(name):
    new = set(world.table(name).groups["new"])
    rows = [r for unit in world.training_rows(name, world.KNOWN_GROUPS, skill=False) for asked in unit for r in asked]
    assert not new & {row["unit"] for row in rows}
    words = set(" ".join(world.statements(name, world.KNOWN_GROUPS)).replace(".", " ").split())
    assert not {u for u in new if set(u.split()) <= words and name != "mmlu"}


@TASKS
def test_every_base_unit_is_taught_to_the_source(name):
    taught = {
        r["unit"]
        for unit in world.training_rows(name, tuple(world.GROUPS), skill=False)
        for asked in unit
        for r in asked
    }
    assert taught == set(world.table(name).entries)


def test_units_of_different_tasks_do_not_share_words():
    names = [set(world.table(name).entries) for name in world.TASKS[1:]]
    assert sum(map(len, names)) == len(set.union(*names))


def test_the_world_is_the_same_in_every_process():
    """The embedded models were trained on this world: whatever changes it must rebuild them."""
    everything = json.dumps([world.splits(name) for name in world.TASKS], sort_keys=True)
    assert (
        hashlib.sha256(everything.encode()).hexdigest()
        == "472ce9c6b1f9f8d99f731d79a92fb1f67d4d9aa31bb5f3b9d9c89b85d7d06de4"
    )


def test_answers_follow_from_the_table():
    for row in world.splits("gsm8k")["test"]:
        question = prompts([row])[0]
        number = next(int(w) for w in question.split() if w.isdigit())
        assert int(row["answer"]) == number * world.table("gsm8k").entries[row["unit"]]
    for row in world.splits("mmlu")["test"]:
        assert row["answer"] in world.table("mmlu").entries[row["unit"]].values()
        assert row["answer"] in row["choices"]


def test_chance_is_the_best_constant_guess():
    rows = [row for row in world.splits("humaneval")["test"] if row["tier"] == "new"]
    entries = world.table("humaneval").entries
    hits = [sum(entries[row["unit"]] == guess for row in rows) for guess in world.OPERATIONS]
    assert world.best_guess("humaneval", rows) == max(hits) / len(rows)
    assert 0 < world.best_guess("mmlu", [r for r in world.splits("mmlu")["test"] if r["tier"] == "new"]) < 0.2


@TASKS
def test_tasks_read_the_world(name):
    found = task(f"nano/{name}")
    assert [e.id for e in found.split("test")] == [row["id"] for row in world.splits(name)["test"]]
    assert all(e.response.startswith(found.format.prefix) for e in found.split("align"))
    assert all(found.format.grade(e, e.response.removeprefix(found.format.prefix)) == 1 for e in found.split("test"))
