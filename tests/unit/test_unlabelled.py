"""Prompts without labels: which they are, that nothing leaks through them, and who notices when they change."""

from __future__ import annotations

import json

import pytest

from pkt.config import Recipe
from pkt.errors import DataError
from pkt.nano import world
from pkt.run import Run
from pkt.tasks.base import SPLITS, UNLABELLED
from pkt.tasks.sources import task

COUNTS = {"mmlu": 600, "gsm8k": 9300, "humaneval": 2400, "mbpp": 2400}


@pytest.mark.parametrize("name", world.TASKS)
def test_the_nano_worlds_ask_about_new_units_in_wordings_of_no_split(name):
    found = task(f"nano/{name}")
    prompts = found.unlabelled(COUNTS[name])
    assert {e.unit for e in prompts} == set(world.table(name).groups["new"])
    assert len({e.prompt for e in prompts}) == len({e.id for e in prompts}) == COUNTS[name]
    assert not {e.prompt for e in prompts} & {e.prompt for split in SPLITS for e in found.split(split)}
    found.check_disjoint(*SPLITS, UNLABELLED)
    for e in prompts:
        assert (e.response, e.answer, e.choices) == (found.format.prefix, "", ())


def test_their_order_is_random_and_fixed():
    prompts = task("nano/mmlu").unlabelled(60)
    assert prompts == task("nano/mmlu").unlabelled(600)[:60]
    assert len({e.unit for e in prompts}) > 35  # in the world's order it would be 10


def test_more_than_there_are():
    with pytest.raises(
        DataError, match=r"method.unlabelled is 601, but there are 600 unlabelled prompts; set it to 600 or less"
    ):
        task("nano/mmlu").unlabelled(601)
    assert task("nano/mmlu").unlabelled(0) == []


def folder(path, *rows):
    place = path / "splits" / "gsm8k"
    place.mkdir(parents=True)
    if rows:
        place.joinpath("unlabelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = {"messages": [{"role": "user", "content": "b"}, {"role": "assistant", "content": "Answer: 1"}]}
    place.joinpath("train.jsonl").write_text(json.dumps(train) + "\n")
    (path / "test" / "gsm8k").mkdir(parents=True)
    path.joinpath("test", "gsm8k", "test.jsonl").write_text(json.dumps({"question": "c", "answer": "x #### 2"}) + "\n")
    return path


def prompt(text):
    return {"messages": [{"role": "user", "content": text}]}


def test_those_of_a_folder(tmp_path):
    (example,) = task("gsm8k", folder(tmp_path, prompt(" How many? "))).unlabelled(1)
    assert (example.prompt, example.response, example.answer) == ("How many?", "Answer:", "")


def test_a_label_among_them_is_refused(tmp_path):
    row = {"messages": [*prompt("How many?")["messages"], {"role": "assistant", "content": "Answer: 7"}]}
    with pytest.raises(DataError, match=r"unlabelled.jsonl:1: .*roles \['user', 'assistant'\], expected \['user'\]"):
        task("gsm8k", folder(tmp_path, row)).unlabelled(1)


def test_tasks_without_them(tmp_path):
    with pytest.raises(DataError, match=r"gsm8k: no unlabelled prompts; put them into .*unlabelled.jsonl"):
        task("gsm8k", folder(tmp_path)).unlabelled(1)
    with pytest.raises(DataError, match="openai/gsm8k has no unlabelled prompts"):
        task("gsm8k").unlabelled(1)


def run(tmp_path, data, count):
    recipe = Recipe.model_validate(
        {
            "name": "r",
            "source": "nano/source",
            "target": "nano/target",
            "task": {"name": "gsm8k", "data": str(data), "prompt_style": "plain"},
            "method": {"name": "seqkd", "unlabelled": count},
        }
    )
    return Run(recipe, tmp_path / "out")


def test_their_content_decides_the_stage(tmp_path):
    one, two = (folder(tmp_path / text, prompt(text)) for text in ("x", "y"))

    def inputs(count, data):
        made = run(tmp_path, data, count)
        return made.inputs(*made.method.reads(made.options))

    assert inputs(0, one) == inputs(0, two)
    assert inputs(1, one) != inputs(1, two)
    assert inputs(0, one) != inputs(1, one)


def test_a_test_question_among_them_is_refused(tmp_path):
    from pkt.checks import check

    data = folder(tmp_path / "data", prompt("Answer the following question.\n\nQuestion: c"))
    with pytest.raises(DataError, match="splits unlabelled and test overlap"):
        check(run(tmp_path, data, 1))
    with pytest.raises(DataError, match="method.unlabelled is 2, but there are 1"):
        check(run(tmp_path, folder(tmp_path / "more", prompt("x")), 2))
    check(run(tmp_path, data, 0))
