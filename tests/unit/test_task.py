"""Splits that overlap: refused, or dropped on request, by name."""

from __future__ import annotations

import logging

import pytest

from pkt.errors import DataError
from pkt.tasks.base import Example, Task
from pkt.tasks.formats import FORMATS
from pkt.tasks.sources import task


def make(**splits: list[str]) -> Task:
    examples = {
        split: [Example(f"{split}/{i}", prompt, "Answer: 1", "1", prompt) for i, prompt in enumerate(prompts)]
        for split, prompts in splits.items()
    }
    return Task("tiny", FORMATS["gsm8k"], lambda name: examples[name], "here")


def test_an_overlap_with_test_is_refused_with_a_way_out():
    with pytest.raises(
        DataError, match="splits align and test overlap: examples align/1 and test/0.*drop_overlap=true"
    ):
        make(align=["a", "b"], test=["b", "c"]).check_disjoint("align", "test")
    with pytest.raises(DataError, match="splits extract and align overlap.*remove one of them$"):
        make(extract=["a"], align=["a"]).check_disjoint("extract", "align")


def test_on_request_it_is_dropped_from_the_other_splits_and_named(caplog):
    found = make(align=["a", "b"], test=["b", "c"]).without_test_items()
    with caplog.at_level(logging.WARNING):
        assert [e.id for e in found.split("align")] == ["align/0"]
    assert "dropped from align" in caplog.text
    assert "align/1" in caplog.text
    assert len(found.split("test")) == 2
    found.check_disjoint("align", "test")


@pytest.mark.parametrize(("name", "overlapping"), [("mmlu", 14), ("mbpp", 6)])
def test_published_splits_with_overlaps_can_be_used(data_folder, name, overlapping):
    """MMLU repeats questions across its own parts and subjects, MBPP texts and code: so some train rows are test items."""
    whole = task(name, data_folder)
    whole.check_disjoint("extract", "align", "test")
    with pytest.raises(DataError, match="splits train and test overlap"):
        whole.check_disjoint("train", "test")
    found = whole.without_test_items()
    found.check_disjoint("extract", "align", "train", "test")
    assert len(found.split("train")) == len(whole.split("train")) - overlapping


def sized(**sizes: int) -> Task:
    return make(**{name: [f"{name} {i}" for i in range(size)] for name, size in sizes.items()})


@pytest.mark.parametrize(
    ("num", "sizes", "shares"),
    [
        (16, {"extract": 20, "align": 80}, {"extract": 3, "align": 13}),
        (100, {"extract": 20, "align": 80}, {"extract": 20, "align": 80}),
        (99, {"extract": 20, "align": 80}, {"extract": 20, "align": 79}),
        (2, {"extract": 20, "align": 80}, {"extract": 1, "align": 1}),
        (3, {"extract": 1, "align": 1, "train": 1000}, {"extract": 1, "align": 1, "train": 1}),
        (7, {"train": 300}, {"train": 7}),
        (5, {"extract": 10, "align": 10}, {"extract": 3, "align": 2}),
    ],
)
def test_labels_are_dealt_by_size_and_the_first_stay(num, sizes, shares):
    whole = sized(**sizes, valid=5, test=4)
    few = whole.limited(num, tuple(sizes))
    assert {name: len(few.split(name)) for name in sizes} == shares
    assert all(few.split(name) == whole.split(name)[: shares[name]] for name in sizes)
    assert few.split("valid") == whole.split("valid")
    assert few.split("test") == whole.split("test")
    assert few.location == few.split("extract") if "extract" in sizes else True


def test_a_larger_budget_contains_a_smaller_one():
    whole, names = sized(extract=20, align=80), ("extract", "align")
    held = [{e.id for name in names for e in whole.limited(num, names).split(name)} for num in (16, 32, 64)]
    assert held[0] < held[1] < held[2]


@pytest.mark.parametrize(
    ("num", "names", "sizes", "message"),
    [
        (101, ("extract", "align"), {"extract": 20, "align": 80}, "labels is 101, .* hold 100 examples .extract 20, align 80.; lower it"),
        (1, ("extract", "align"), {"extract": 20, "align": 80}, "every split .* needs an example .*; set it to 2 at least"),
        (3, ("extract", "align"), {"extract": 0, "align": 80}, "every split .* needs an example .extract 0, align 80"),
        (3, (), {}, "the method reads no labelled example; leave it out"),
    ],
)  # fmt: skip
def test_a_budget_that_cannot_be_dealt(num, names, sizes, message):
    with pytest.raises(DataError, match=message) as e:
        sized(**sizes, test=1).limited(num, names)
    assert "\n" not in str(e.value)
