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


@pytest.mark.parametrize(("name", "overlapping"), [("mmlu", 5), ("mbpp", 1)])
def test_published_splits_with_overlaps_can_be_used(data_folder, name, overlapping):
    """MMLU repeats questions across its own parts, MBPP texts: so some train rows ask what test asks."""
    whole = task(name, data_folder)
    whole.check_disjoint("extract", "align", "test")
    with pytest.raises(DataError, match="splits train and test overlap"):
        whole.check_disjoint("train", "test")
    found = whole.without_test_items()
    found.check_disjoint("extract", "align", "train", "test")
    assert len(found.split("train")) == len(whole.split("train")) - overlapping
