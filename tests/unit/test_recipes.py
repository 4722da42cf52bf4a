"""Shipped recipes fit every embedded task, whichever `--set task.name` chooses."""

from __future__ import annotations

import pytest

from pkt.methods import method_of
from pkt.models.lm import LM
from pkt.nano import world
from pkt.recipe_files import RECIPES, load_recipe
from pkt.tasks.sources import task

SAMPLING = sorted(path.stem for path in RECIPES.glob("nano_*.yaml") if "kd" in path.stem)


@pytest.mark.parametrize("name", world.TASKS)
@pytest.mark.parametrize("recipe", SAMPLING)
def test_right_answers_are_not_cut(recipe, name):
    _, options = method_of(load_recipe(recipe, [f"task.name=nano/{name}"]))
    tokenizer, found = LM("nano/target").tokenizer, task(f"nano/{name}")
    most = options.max_new_tokens or found.format.max_new_tokens
    for example in found.split("train"):
        start = found.format.opening(example, "plain")
        assert example.response.startswith(start)
        answer = tokenizer(example.response.removeprefix(start), add_special_tokens=False)["input_ids"]
        assert len(answer) < most  # and the end of sequence


CODE = ("humaneval", "mbpp", "mbpp_plus")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_of_graded_code_score_it_and_say_what_that_needs(path):
    recipe, text = load_recipe(path.stem), path.read_text(encoding="utf-8")
    assert {"target", "result"} <= set(recipe.evaluate.arms)
    assert "does not grade" not in text
    assert recipe.task.name not in CODE or "--allow-code-execution" in text
