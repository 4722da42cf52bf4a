"""Tasks from the hub, with small local data sets in its place; and what happens where it cannot be reached."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

import datasets
import huggingface_hub
import pytest
from hub_data import make, serve

from pkt.errors import DataError
from pkt.tasks import hub, reading
from pkt.tasks.sources import task

SMALL = {"extract": 3, "align": 4, "valid": 5, "train": 1000}


@pytest.fixture
def small_hub(monkeypatch, tmp_path) -> None:
    serve(monkeypatch, tmp_path)
    monkeypatch.setattr(hub, "DEALT", SMALL)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("gsm8k", (3, 4, 5, 23, 20)),  # five of the forty rows are test items
        ("mmlu", (3, 4, 5, 8, 9)),  # of 41 three are test items, one lost a choice, and 17 stand in two subjects
        ("mbpp", (3, 4, 5, 28, 10)),
        ("math", (3, 4, 5, 30, 14)),
        ("mbpp_plus", (3, 4, 5, 8, 278)),  # the small MBPP+ has every second task id up to 756
    ],
)
def test_splits_of_every_data_set(small_hub, name, sizes):
    found = task(name)
    assert tuple(len(found.split(s)) for s in ("extract", "align", "valid", "train", "test")) == sizes
    found.check_disjoint("extract", "align", "valid", "train", "test")
    for split in ("extract", "train", "test"):
        for example in found.split(split):
            assert example.response.startswith(found.format.prefix)
            assert example.answer in example.response
    assert found.origin.startswith("hub ")


def test_humaneval_has_a_test_split_with_its_instructions(small_hub):
    found = task("humaneval")
    assert [e.id for e in found.split("test")] == ["HumanEval/0", "HumanEval/1", "HumanEval/2"]
    assert "which adds 1" in found.split("test")[1].prompt
    with pytest.raises(DataError, match="humaneval: .* has a test split only and no train"):
        found.split("train")


def test_all_seven_subjects_of_math_are_read(small_hub):
    found = task("math").split("test")
    assert [e.id.split("/")[-3] for e in found] == [subject for subject in hub.HUB["math"].configs for _ in range(2)]
    assert len({e.id for e in found}) == 14


def test_left_out_rows_are_named_once_and_taken_down(small_hub, monkeypatch, caplog):
    monkeypatch.setattr(reading, "_reported", set())
    with caplog.at_level(logging.WARNING, "pkt"):
        found, again = task("mmlu"), task("mmlu")
        found.split("train")
        again.split("train")
    (message,) = [r.getMessage() for r in caplog.records if "nan" in r.getMessage()]
    assert "validation/40" in message
    reasons = [row.reason for row in found.dropped]
    assert reasons.count(reading.LOST_CHOICE) == 1
    assert reasons.count("a test item of mmlu: question and choices, exact") == 3
    assert found.dropped == again.dropped


def test_columns_that_are_missing_are_named(small_hub, monkeypatch, tmp_path):
    path = make(tmp_path / "other", {"main": {"test": [{"question": "q"}]}})
    monkeypatch.setitem(hub.HUB, "gsm8k", replace(hub.HUB["gsm8k"], path=path))
    with pytest.raises(DataError, match="test/0: no field 'answer'"):
        task("gsm8k").split("test")


def test_offline_the_line_comes_at_once(monkeypatch, capfd):
    """HF_HUB_OFFLINE is set for all tests."""
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", _never)
    start = time.process_time()
    with pytest.raises(DataError, match="openai/gsm8k could not be read from the hub or the cache"):
        task("gsm8k").split("test")
    assert time.process_time() - start < 10
    assert "Retry" not in capfd.readouterr().err


def _never(*_: object, **__: object) -> None:
    raise AssertionError("the hub was asked")


def test_a_hub_that_does_not_answer_is_asked_once_and_the_cache_is_read(monkeypatch):
    asked, was_offline = [], []

    def unreachable(_self: object, path: str, *, timeout: float) -> None:
        asked.append((path, timeout))
        raise ConnectionError("no name")

    def load(*_: object, **__: object) -> None:
        was_offline.append(datasets.config.HF_HUB_OFFLINE)
        raise ConnectionError("not in the cache")

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(DataError, match="could not be read from the hub or the cache .ConnectionError.*task.data=DIR"):
        task("gsm8k").split("test")
    assert asked == [("openai/gsm8k", hub.SECONDS)]
    assert was_offline == [True], "the library tries no network, so nothing five times over"
    assert datasets.config.HF_HUB_OFFLINE is False


def test_a_hub_that_answers_is_read(monkeypatch):
    was_offline = []

    def load(*_: object, **__: object) -> list[dict]:
        was_offline.append(datasets.config.HF_HUB_OFFLINE)
        return [{"question": "q", "answer": "#### 1"}]

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: None)
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(task("gsm8k").split("test")) == 1
    assert was_offline == [False]
