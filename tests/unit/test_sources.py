"""Reading tasks: the nano world, folders with every kind of broken line, the hub (a stand-in), the real files."""

import gzip
import json
import logging
from pathlib import Path

import datasets
import pytest

from pkt.environment import _commit
from pkt.errors import ConfigError, DataError
from pkt.nano import world
from pkt.tasks import reading
from pkt.tasks.base import SPLITS
from pkt.tasks.formats import FORMATS
from pkt.tasks.hub import DEALT
from pkt.tasks.sources import TASKS, task


def gsm8k_row(i: int, **more: object) -> dict:
    user = {"role": "user", "content": f"Answer the following question.\n\nQuestion: What is {i}?"}
    return {
        "id": f"gsm_{i}",
        "messages": [user, {"role": "assistant", "content": f"Answer: So the answer is {i}."}],
        **more,
    }


def write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, start, count in (("extract", 0, 3), ("align", 3, 5), ("train", 8, 25)):
        write(tmp_path / "splits" / "gsm8k" / f"{split}.jsonl", [gsm8k_row(i) for i in range(start, start + count)])
    tests = [{"question": f"How much is {i}?", "answer": f"It is {i}.\n#### {i}"} for i in range(100, 104)]
    write(tmp_path / "test" / "gsm8k" / "test.jsonl.gz", tests)
    return tmp_path


def test_unknown_task() -> None:
    with pytest.raises(ConfigError, match="'nano/gms8k'.*did you mean 'nano/gsm8k'"):
        task("nano/gms8k")
    with pytest.raises(ConfigError, match="embedded"):
        task("nano/gsm8k", "somewhere")
    assert set(TASKS) == {*FORMATS, *(f"nano/{name}" for name in world.TASKS)}


@pytest.mark.parametrize("name", world.TASKS)
def test_nano(name: str) -> None:
    found = task(f"nano/{name}")
    found.check_disjoint(*SPLITS)
    assert found.origin == "nano"
    assert found.format.max_new_tokens <= 48
    assert {split: len(found.split(split)) for split in SPLITS} == {k: len(v) for k, v in world.splits(name).items()}
    assert {e.tier for e in found.split("test")} == set(world.TIERS)
    if name == "mmlu":
        assert {len(e.choices) for e in found.split("test")} == {16}
        assert all(e.answer in e.choices for e in found.split("test"))


def test_folder(folder: Path) -> None:
    found = task("gsm8k", folder)
    found.check_disjoint(*SPLITS)
    assert {s: len(found.split(s)) for s in SPLITS} == {"extract": 3, "align": 5, "train": 23, "valid": 2, "test": 4}
    assert [e.answer for e in found.split("valid")] == ["31", "32"], "valid is the end of train"
    assert found.origin == str(folder)
    assert len({e.id for s in SPLITS for e in found.split(s)}) == 37
    assert found.split("test")[0].answer == "100"
    with pytest.raises(DataError, match="no split 'dev'"):
        found.split("dev")


def test_folder_with_a_valid_split_of_its_own(folder: Path) -> None:
    write(folder / "splits" / "gsm8k" / "valid.jsonl", [gsm8k_row(50)])
    found = task("gsm8k", folder)
    assert [e.id for e in found.split("valid")] == ["gsm_50"]
    assert len(found.split("train")) == 25


def test_raw_unicode_line_ends_do_not_end_a_line(folder: Path) -> None:
    row = gsm8k_row(1)
    row["messages"][0]["content"] = "one\u2028two\x85three\u2029four"
    path = folder / "splits" / "gsm8k" / "extract.jsonl"
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n" + json.dumps(gsm8k_row(2)), encoding="utf-8", newline="")
    first, second = task("gsm8k", folder).split("extract")
    assert first.prompt == row["messages"][0]["content"]
    assert second.id == "gsm_2", "the last line needs no line end"


def test_gzipped_files_with_raw_line_ends(folder: Path) -> None:
    row = gsm8k_row(1)
    row["messages"][0]["content"] = "one\u2028two\x85three"
    (folder / "splits" / "gsm8k" / "extract.jsonl").unlink()
    write(folder / "splits" / "gsm8k" / "extract.jsonl.gz", [row, gsm8k_row(2)])
    assert [e.id for e in task("gsm8k", folder).split("extract")] == ["gsm_1", "gsm_2"]
    assert task("gsm8k", folder).split("extract")[0].prompt == row["messages"][0]["content"]


def test_the_raw_line_ends_of_the_public_files(data_folder: Path) -> None:
    assert task("gsm8k", data_folder).split("align")[63].prompt.count("\u2028") == 2
    assert "\x85" in task("mmlu", data_folder).split("align")[57].prompt


MBPP_ROW = {"text": "Add.", "code": "def f(x):\r\n  return x", "test_list": ["assert f(1)"], "test_setup_code": ""}


def test_the_test_set_of_mbpp_is_cut_from_all_tasks_where_there_is_no_other(tmp_path: Path) -> None:
    whole = [{**MBPP_ROW, "task_id": i} for i in range(1, 975)]
    write(tmp_path / "test" / "mbpp" / "mbpp.jsonl.gz", whole)
    assert [e.id for e in task("mbpp", tmp_path).split("test")] == [f"mbpp/{i}" for i in range(11, 511)]
    write(tmp_path / "test" / "mbpp" / "mbpp.jsonl", whole[:100])
    with pytest.raises(DataError, match="test/mbpp/mbpp.jsonl: has 90 of MBPP's test tasks, expected the 500"):
        task("mbpp", tmp_path).split("test")
    write(tmp_path / "test" / "mbpp" / "test.jsonl", whole[20:23])
    assert [e.id for e in task("mbpp", tmp_path).split("test")] == ["mbpp/21", "mbpp/22", "mbpp/23"]


def test_mbpp_plus_has_the_splits_of_mbpp_and_rows_of_its_own(data_folder: Path) -> None:
    plus, mbpp = task("mbpp_plus", data_folder), task("mbpp", data_folder)
    for split in ("extract", "align", "train", "valid"):
        assert [e.prompt for e in plus.split(split)] == [e.prompt for e in mbpp.split(split)]
    ids = [int(e.id.removeprefix("mbpp_plus/")) for e in plus.split("test")]
    expected = json.loads((data_folder / "contamination.json").read_text())["mbpp"]["mbpp_plus_rows_100_377_task_ids"]
    assert ids == expected


def test_mbpp_plus_needs_the_whole_file(tmp_path: Path) -> None:
    write(tmp_path / "test" / "mbpp" / "mbpp_plus.jsonl", [{"task_id": 1}] * 278)
    with pytest.raises(DataError, match="test/mbpp/mbpp_plus.jsonl: has 278 rows, expected the 378 of MBPP"):
        task("mbpp_plus", tmp_path).split("test")


def test_lost_rows_are_taken_down_and_reported_once(data_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    reading._reported.clear()
    found = task("mmlu", data_folder)
    with caplog.at_level(logging.WARNING, "pkt"):
        for split in ("train", "valid"):  # both are read from one file
            found.split(split)
        task("mmlu", data_folder).split("train")
    assert [row.id for row in found.dropped] == ["electrical_engineering_13", "conceptual_physics_19"]
    assert [
        f"train.jsonl:{number}" in r.getMessage() for number, r in zip((699, 855), caplog.records, strict=True)
    ] == [
        True,
        True,
    ]


GOOD = json.dumps(gsm8k_row(1))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty file"),
        (f"{GOOD}\n\n{GOOD}\n".encode(), ":2: empty line"),
        (f"{GOOD}\n{GOOD}\n \n".encode(), ":3: empty line"),
        (f"{GOOD}\n{{'a': 1}}\n".encode(), ":2: not valid JSON.*column 2"),
        (f"{GOOD}\n{GOOD[:-5]}\n".encode(), ":2: not valid JSON"),
        (f"{GOOD}\n[1]\n".encode(), ":2: found list, expected a JSON object"),
        (("[" * 100_000 + "\n").encode(), ":1: nested too deeply"),
        (f"{GOOD}\n".encode() + b"\xff\n", "not UTF-8"),
        (f"{GOOD}\n{json.dumps({'id': 'x'})}\n".encode(), ":2: no field 'messages'"),
        (f"{GOOD}\n{json.dumps(gsm8k_row(1, unit=3))}\n".encode(), ":2: field unit is int, expected str"),
    ],
)
def test_broken_files_are_named_with_the_line(folder: Path, content: bytes, message: str) -> None:
    path = folder / "splits" / "gsm8k" / "extract.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{path}.*{message}"):
        task("gsm8k", folder).split("extract")


def test_items_of_one_id_are_refused(tmp_path: Path) -> None:
    row = {"task_id": 7, "text": "Add.", "code": "def f(): pass", "test_list": ["assert f()"]}
    write(tmp_path / "test" / "mbpp" / "test.jsonl", [row, {**row, "text": "Subtract."}, {**row, "task_id": 8}])
    with pytest.raises(
        DataError, match=r"test/mbpp/test.jsonl: 1 ids stand there more than once \(mbpp/7\); give every"
    ):
        task("mbpp", tmp_path).split("test")


def test_missing_and_damaged_files(folder: Path) -> None:
    with pytest.raises(DataError, match="no folder .*nowhere"):
        task("gsm8k", folder / "nowhere")
    with pytest.raises(DataError, match="splits/mmlu/extract.jsonl: no such file"):
        task("mmlu", folder).split("extract")
    with pytest.raises(DataError, match="test/mmlu/test.jsonl: no such file"):
        task("mmlu", folder).split("test")
    path = folder / "test" / "gsm8k" / "test.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(DataError, match=f"{path}: no gzip file, or a damaged one"):
        task("gsm8k", folder).split("test")


def test_rows_with_a_lost_choice_are_dropped_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        {"subject": "physics", "question": f"q{i}", "choices": ["1", "2", "3", choice], "answer": 0}
        for i, choice in enumerate(["4", "nan", "banana", "None"])
    ]
    write(tmp_path / "test" / "mmlu" / "test.jsonl", rows)
    with caplog.at_level(logging.WARNING):
        found = task("mmlu", tmp_path).split("test")
    assert [e.prompt.split("\n")[2] for e in found] == ["q0", "q2", "q3"]
    (record,) = caplog.records
    assert "test.jsonl:2" in record.getMessage()


class Hub:
    """Stands in for the hub: rows by split, or an error."""

    def __init__(self, splits: dict[str, list[dict]]) -> None:
        self.splits = splits

    def __call__(self, path: str, name: str | None, *, split: str) -> list[dict]:
        return [row for part in split.split("+") for row in self.splits[part]]


def test_hub_splits_are_dealt_once_and_disjoint(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(numbers: range) -> list[dict]:
        return [{"question": f"What is {i}?", "answer": f"#### {i}"} for i in numbers]

    monkeypatch.setattr(
        datasets, "load_dataset", Hub({"train": rows(range(1400)) + rows(range(50)), "test": rows(range(1390, 1500))})
    )
    one, two = task("gsm8k"), task("gsm8k")
    assert {s: len(one.split(s)) for s in SPLITS} == {**DEALT, "test": 110}
    one.check_disjoint(*SPLITS)
    prompts = [e.prompt for s in SPLITS for e in one.split(s)]
    assert len(set(prompts)) == len(prompts)
    assert [two.split(s) for s in reversed(SPLITS)] == [one.split(s) for s in reversed(SPLITS)], (
        "reading order does not matter"
    )
    assert [e.answer for e in one.split("train")[:5]] != ["0", "1", "2", "3", "4"], "dealt at random"
    assert "openai/gsm8k" in one.origin


def test_hub_mmlu_is_dealt_from_validation_so_that_few_shot_examples_stay_unseen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def rows(start: int, count: int) -> list[dict]:
        return [
            {"subject": "physics", "question": f"q{i}", "choices": list("1234"), "answer": 2}
            for i in range(start, start + count)
        ]

    monkeypatch.setattr(
        datasets, "load_dataset", Hub({"dev": rows(0, 285), "validation": rows(285, 1531), "test": rows(5000, 9)})
    )
    found = task("mmlu")
    assert {s: len(found.split(s)) for s in SPLITS} == {**DEALT, "test": 9}
    assert all(e.id.startswith("cais/mmlu/validation/") for s in DEALT for e in found.split(s))
    assert {e.unit for e in found.split("train")} == {"physics"}


def test_hub_without_training_data_or_network(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="humaneval: .* has a test split only and no align"):
        task("humaneval").split("align")

    def offline(*args: object, **kwargs: object) -> None:
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DataError, match="data set openai/gsm8k could not be read from the hub.*task.data=DIR"):
        task("gsm8k").split("test")


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("gsm8k", (20, 80, 900, 100, 1319)),
        ("mmlu", (20, 80, 899, 99, 14042)),  # two of the 1,000 rows have lost a choice
        ("humaneval", (20, 80, 900, 100, 164)),
        ("mbpp", (32, 40, 270, 30, 500)),
    ],
)
def test_the_public_files(name: str, counts: tuple[int, ...], data_folder: Path) -> None:
    found = task(name, data_folder)
    assert tuple(len(found.split(s)) for s in SPLITS) == counts
    found.check_disjoint("extract", "align", "train", "valid")
    assert len({e.id for s in SPLITS for e in found.split(s)}) == sum(counts)
    for split in SPLITS:
        for e in found.split(split):
            assert e.prompt
            assert e.answer
            if name != "humaneval" or split == "test":  # the published humaneval splits have free text
                assert e.response.startswith(e.opening or found.format.prefix)
            if name == "gsm8k":
                assert found.format.grade(e, e.response) == 1.0
    if name == "mmlu":
        assert len({e.unit for e in found.split("test")}) == 57
        users = {e.prompt.split(".\n", 1)[0] for s in ("train", "test") for e in found.split(s)}
        assert len(users) == 57, "test prompts name subjects as the splits do"


def test_half_a_surrogate_pair_is_refused(folder: Path) -> None:
    path = folder / "splits" / "gsm8k" / "train.jsonl"
    path.write_text(
        '{"question": "whole \\ud83d\\ude00", "answer": "#### 1"}\n{"question": "half \\ud83d", "answer": "#### 1"}\n'
    )
    with pytest.raises(DataError, match=r"train.jsonl:2: half of a surrogate pair"):
        task("gsm8k", folder).split("train")


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _commit(tmp_path) is None
