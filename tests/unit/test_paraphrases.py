"""Paraphrases: the same question in other words, and nothing that stands in another split."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pkt.errors import DataError
from pkt.nano import world
from pkt.tasks.base import SPLITS, Example, Task, fingerprint
from pkt.tasks.formats import FORMATS
from pkt.tasks.sources import task


@pytest.mark.parametrize("name", world.TASKS)
def test_nano_wordings_ask_the_same_and_give_no_split_away(name):
    found = task(f"nano/{name}")
    held = {e.prompt for split in SPLITS for e in found.split(split)}
    count = 0
    for example in found.split("extract"):
        others = found.paraphrases(example)
        count += len(others)
        assert len({e.prompt for e in others} | {example.prompt}) == len(others) + 1
        for other in others:
            assert (other.response, other.answer, other.unit) == (example.response, example.answer, example.unit)
            assert other.prompt not in held
            assert example.unit.lower() in other.prompt.lower()
    assert count >= 20  # one each at least, on average


def test_a_nano_question_has_all_wordings_of_the_same_thing():
    found = task("nano/gsm8k")
    example = found.split("extract")[0]
    groups = world.wordings("gsm8k", example.unit, "")
    (group,) = [g for g in groups if example.prompt in {r["messages"][0]["content"] for r in g}]
    held = world.heldout_prompts("gsm8k")
    expected = [r["messages"][0]["content"] for r in group if r["messages"][0]["content"] not in held]
    assert [e.prompt for e in found.paraphrases(example)] == expected
    assert len(expected) > 10


def test_examples_of_another_nano_task_keep_theirs():
    one, other = task("nano/mmlu"), task("nano/gsm8k")
    example = other.split("extract")[0]
    here = [e.prompt for e in one.located_with([example]).paraphrases(example)]
    assert here == [e.prompt for e in other.paraphrases(example)]
    assert here


def example(prompt: str, *paraphrases: str) -> Example:
    return Example(prompt, prompt, "Answer: 1", "1", prompt, paraphrases=paraphrases)


def test_those_of_a_row_that_stand_in_another_split_are_left_out():
    splits = {"extract": [example("a", "b", "c", "t", "a", "c"), example("c")], "test": [example("t")]}

    def load(name: str) -> list[Example]:
        if name not in splits:
            raise DataError("no such split")
        return splits[name]

    made = Task("tiny", FORMATS["gsm8k"], load, "here")
    found = made.paraphrases(splits["extract"][0])
    assert [(e.id, e.prompt) for e in found] == [("a, wording 1", "b"), ("a, wording 2", "c")]
    assert made.paraphrases(splits["extract"][1]) == []
    stranger = example("z", "c", "d")  # of another task: nothing that stands in any split here
    assert [e.prompt for e in made.paraphrases(stranger)] == ["d"]


def test_rows_are_read_strictly():
    read = FORMATS["gsm8k"].from_messages
    row = {
        "messages": [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "So the answer is 3."}],
        "paraphrases": ["What number? ", "How much?"],
    }
    assert read(row, "here").paraphrases == ("What number?", "How much?")
    for wrong in (["  "], [3], "What number?"):
        with pytest.raises(DataError, match="here: field paraphrases"):
            read({**row, "paraphrases": wrong}, "here")


def test_examples_without_paraphrases_keep_their_fingerprint():
    """Of an example as it was before there were paraphrases, as a literal."""
    plain = example("a")
    assert fingerprint([plain]) == "89289b4f2bd4bc1527c2c47319157f70a4fe4fb13d8a90416875fe6e28411f4f"
    assert fingerprint([replace(plain, paraphrases=("b",))]) != fingerprint([plain])
