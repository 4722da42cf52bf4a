"""Overlap of splits with test sets: small cases by hand, and the figures of the published data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pkt.tasks.base import Example
from pkt.tasks.contamination import Overlap, numbered, overlaps, repeats, split_of, test_set_of, without_repeats
from pkt.tasks.folder import Folder
from pkt.tasks.formats import FORMATS
from pkt.tasks.jsonl import read_jsonl
from pkt.tasks.overlaps import FEW_SHOT, hits, report, sentence
from pkt.tasks.reading import Dropped
from pkt.tasks.texts import compared_texts, normalised

test_set_of.__test__ = False


def gsm8k(name: str, question: str) -> Example:
    return FORMATS["gsm8k"].from_test({"question": question, "answer": "So. #### 1"}, name)


def mmlu(name: str, question: str, subject: str = "physics", choices: str = "wxyz") -> Example:
    row = {"subject": subject, "question": question, "choices": list(choices), "answer": 0}
    return FORMATS["mmlu"].from_test(row, name)


def mbpp(number: int, text: str, code: str) -> Example:
    row = {"task_id": number, "text": text, "code": code, "test_list": ["assert True"], "test_setup_code": ""}
    return FORMATS["mbpp"].from_test(row, "")


DOUBLED = {
    "task_id": "HumanEval/7",
    "prompt": 'def double(xs):\n    """Return the list with every one of its numbers doubled, in the same order."""\n',
    "canonical_solution": "    return [2 * value for value in xs if value is not None and value == value + 0]\n",
    "test": "def check(candidate):\n    pass\n",
    "entry_point": "double",
}


def one(split: list[Example], test: list[Example], task: str, other: str = "", **options: bool) -> Overlap:
    (found,) = overlaps([split_of("train", task, split)], test_set_of(other or task, other or task, test), **options)
    return found


def test_normalised_keeps_letters_and_digits_alone():
    assert normalised("Ünï-cödé, ① fi\u2028\tX²") == "unicode1fix2"
    assert normalised("− + ∑") == ""


def test_exact_and_normalised_questions():
    rows = [gsm8k("a", "How many?"), gsm8k("b", "how  MANY"), gsm8k("c", "How much?"), gsm8k("d", "How many?\r\n")]
    found = one(rows, [gsm8k("t1", "How many?"), gsm8k("t2", "how many!")], "gsm8k")
    assert [(m.id, m.what, m.exact, m.test_ids) for m in found.matches] == [
        ("a", "question", True, ["t1", "t2"]),
        ("b", "question", False, ["t1", "t2"]),
        ("d", "question", True, ["t1", "t2"]),
    ]
    assert (found.num_same(exact=True), found.num_same(exact=False)) == (2, 3)
    assert found.record()["by_text"] == {"question": {"exact": 2, "normalised": 3}}


def test_a_question_of_signs_alone_is_compared_as_it_is():
    found = one([gsm8k("a", "−+"), gsm8k("b", "−−")], [gsm8k("t", "−+")], "gsm8k")
    assert [m.id for m in found.matches] == ["a"]


def test_mmlu_compares_choices_and_not_the_subject():
    rows = [
        mmlu("a", "Why?", subject="anatomy"),
        mmlu("b", "Why?", choices="wxyv"),
        mmlu("c", "Why\n\nA. not?"),
    ]
    found = one(rows, [mmlu("t", "Why?")], "mmlu")
    assert [(m.id, m.what) for m in found.matches] == [
        ("a", "question and choices"),
        ("a", "question"),
        ("b", "question"),
    ]
    assert [m.id for m in found.same] == ["a"], "the same question with other choices is another item"
    texts = compared_texts("mmlu", mmlu("x", "One\nA. two\n\nthree?"))
    assert texts.named["question"] == "One\nA. two\n\nthree?"
    assert texts.named["question and choices"] == "One\nA. two\n\nthree?\nA. w\nB. x\nC. y\nD. z"


def test_mbpp_compares_text_code_and_number():
    test = [mbpp(11, "Add two numbers.", "def add(a, b):\n  return a + b")]
    rows = [
        mbpp(601, "Add two numbers.", "def plus(x, y):\r\n  return x + y"),
        mbpp(602, "Sum it.", "def add(a, b):\r\n  return a+b "),
        mbpp(603, "Sum it up.", "def f(a, b):\n  return a - b"),
        mbpp(11, "Other.", "def g():\n  return 1"),
    ]
    found = one(rows, test, "mbpp")
    assert [(m.id, m.what, m.exact) for m in found.matches] == [
        ("mbpp/601", "question", True),
        ("mbpp/602", "code", False),
        ("mbpp/11", "task id", True),
    ]


def test_published_mbpp_rows_get_the_number_of_their_task():
    task = mbpp(604, "Reverse words.", "def r(s):\r\n  return s[::-1]")
    row = {
        "messages": [
            {"role": "user", "content": task.prompt.replace("\n", "\r\n")},
            {"role": "assistant", "content": task.response},
        ]
    }
    split = split_of("train", "mbpp", [FORMATS["mbpp"].from_messages(row, "mbpp/train.jsonl:1")])
    assert "task id" not in split.rows[0].named
    known = test_set_of("mbpp", "mbpp", [task, mbpp(605, "Else.", "def e():\n  return 0")])
    assert numbered(split, known).rows[0].named["task id"] == "604"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (DOUBLED["prompt"], {"prompt", "docstring"}),
        ("Return the list with every one of its  numbers doubled - in the same order", {"docstring"}),
        ("def f(xs):\n    return [2*value for value in xs if value is not None and value==value+0]", {"solution"}),
        ("Return the list doubled.", set()),
    ],
)
def test_humaneval_items_are_looked_for_inside_rows(text, what):
    row = {
        "messages": [{"role": "user", "content": "Please write it."}, {"role": "assistant", "content": f"{text}\n# ok"}]
    }
    found = one(
        [FORMATS["humaneval"].from_messages(row, "r")], [FORMATS["humaneval"].from_test(DOUBLED, "")], "humaneval"
    )
    assert {m.what for m in found.matches} == what
    assert all(m.test_ids == ["HumanEval/7"] for m in found.matches)


def test_a_short_solution_is_no_copy():
    short = DOUBLED | {"canonical_solution": "    return xs + xs\n"}
    row = {"messages": [{"role": "user", "content": "Twice"}, {"role": "assistant", "content": "return xs + xs"}]}
    found = one(
        [FORMATS["humaneval"].from_messages(row, "r")], [FORMATS["humaneval"].from_test(short, "")], "humaneval"
    )
    assert found.matches == []


def test_shared_runs_of_words():
    words = " ".join(f"word{i}" for i in range(20))
    rows = [gsm8k("a", f"So {words} it is?"), gsm8k("b", " ".join(words.split()[:12]) + " else?")]
    found = one(rows, [gsm8k("t", words)], "gsm8k")
    assert found.runs == ["a"], "thirteen words are a run, twelve are none"
    assert one(rows, [gsm8k("t", words)], "gsm8k", runs=False).runs == []


def test_across_tasks_questions_are_compared():
    found = one([gsm8k("a", "Why is it so?")], [mmlu("t", "Why is it so?")], "gsm8k", "mmlu")
    assert [m.what for m in found.matches] == ["question"]
    assert found.same == []


def test_rows_are_rid_of_test_items_and_repetitions_by_name():
    rows = [gsm8k("a", "One?"), gsm8k("b", "Two?"), gsm8k("c", "one"), gsm8k("d", "Three?")]
    dropped: list[Dropped] = []
    kept = without_repeats("gsm8k", rows, {"gsm8k": [gsm8k("t", "THREE")], "math": [gsm8k("m", "Two?")]}, dropped)
    assert [e.id for e in kept] == ["a"]
    assert [(row.id, row.reason, row.like) for row in dropped] == [
        ("b", "a test item of math: question, exact", "m"),
        ("c", "another row again: question", "a"),
        ("d", "a test item of gsm8k: question, normalised", "t"),
    ]


def published(data: Path, task: str) -> dict[str, list[Example]]:
    """The splits of the published data with row numbers for ids, corrupt rows included."""
    form = FORMATS[task]
    return {
        split: [
            form.from_messages(row, str(i))
            for i, (_, row) in enumerate(read_jsonl(data / "splits" / task / f"{split}.jsonl"))
        ]
        for split in ("extract", "align", "train")
    }


def counts(found: dict, test: str, key: str = "normalised") -> list[int]:
    return [row[key] for row in found["overlaps"] if row["test"] == test]


def test_the_published_figures_of_gsm8k_and_humaneval(data_folder):
    for task in ("gsm8k", "humaneval"):
        test = Folder(FORMATS[task], data_folder, []).split("test")
        found = report(task, published(data_folder, task), {task: test}, None, origin="", dropped=[])
        assert counts(found, task) == [0, 0, 0]
        assert counts(found, task, "13_word_runs") == [0, 0, 0]
        assert hits(found) == []


def test_the_published_figures_of_mmlu(data_folder):
    expected = json.loads((data_folder / "contamination.json").read_text())["mmlu"]
    splits = published(data_folder, "mmlu")
    test = Folder(FORMATS["mmlu"], data_folder, []).split("test")
    numbers = {e.id: str(i) for i, e in enumerate(test)}
    found = report("mmlu", splits, {"mmlu": test}, data_folder, origin="", dropped=[])
    assert counts(found, "mmlu", "exact") == [0, 2, 15]
    assert counts(found, "mmlu") == [0, 2, 16]
    alone = [row["by_text"].get("question") for row in found["overlaps"] if row["test"] == "mmlu"]
    assert alone == [None, {"exact": 2, "normalised": 2}, {"exact": 23, "normalised": 26}]
    rows = [
        (row["split"], match["id"], match["exact"], [numbers[name] for name in match["test_ids"]])
        for row in found["overlaps"]
        if row["test"] == "mmlu"
        for match in row["rows"]
        if match["what"] == "question and choices"
    ]
    ids = {(split, e.id): i for split, examples in splits.items() for i, e in enumerate(examples)}
    assert [(s, ids[s, name], exact, tests) for s, name, exact, tests in rows] == [
        (row["split"], row["row"], row["exact"], [str(i) for i in row["test_rows"]])
        for row in expected["split_rows_equal_to_test_rows"]
    ]
    few_shot = {row["split"]: row for row in found["overlaps"] if row["test"] == FEW_SHOT}
    assert {split: row["normalised"] for split, row in few_shot.items()} == {"extract": 4, "align": 10, "train": 135}
    for split, row in few_shot.items():
        named = {match["id"] for match in row["rows"] if match["what"] == "question and choices"}
        assert named == set(expected["split_ids_equal_to_dev_rows"][split])
    for other in ("gsm8k", "humaneval", "mbpp", "mbpp_plus"):
        assert counts(found, other) == [0, 0, 0], "across tasks"
    assert "align 2 of 80, train 16 of 1000" in sentence(found)


def test_the_published_runs_of_mmlu(data_folder):
    """13 words in a row, where the row is not about moral scenarios, whose questions begin alike: 1, 6 and 92 rows."""
    splits = {
        name: [e for e in examples if e.unit != "moral_scenarios"]
        for name, examples in published(data_folder, "mmlu").items()
    }
    test = Folder(FORMATS["mmlu"], data_folder, []).split("test")
    found = report("mmlu", splits, {"mmlu": test}, None, origin="", dropped=[])
    assert counts(found, "mmlu", "13_word_runs") == [1, 6, 92]


def test_the_published_figures_of_mbpp(data_folder):
    expected = json.loads((data_folder / "contamination.json").read_text())["mbpp"]
    test = Folder(FORMATS["mbpp"], data_folder, []).split("test")
    splits = published(data_folder, "mbpp")
    found = report("mbpp", splits, {"mbpp": test}, data_folder, origin="", dropped=[])
    assert counts(found, "mbpp") == [0, 0, 6]
    (train,) = [row for row in found["overlaps"] if row["test"] == "mbpp" and row["rows"]]
    assert train["by_text"] == {
        "question": {"exact": 3, "normalised": 3},
        "code": {"exact": 1, "normalised": 4},  # the card counts four codes, and does not say which are exact
    }
    by_row: dict[int, dict[str, list[int]]] = {}
    for match in train["rows"]:
        tests = [int(name.removeprefix("mbpp/")) for name in match["test_ids"]]
        by_row.setdefault(int(match["id"]), {})[match["what"]] = tests
    assert by_row == {
        row["row"]: {
            what: row[f"test_task_ids_same_{key}"]
            for what, key in (("question", "text"), ("code", "code"))
            if row[f"test_task_ids_same_{key}"]
        }
        for row in expected["split_rows_equal_to_test_rows"]
    }
    plus = [row["by_text"]["task id"]["exact"] for row in found["overlaps"] if row["test"] == "mbpp_plus"]
    assert plus == [11, 9, 87]
    assert counts(found, "mbpp_plus") == [11, 10, 88], "one row of align and of train each repeats a task of another id"
    named = {
        name
        for row in found["overlaps"]
        if row["test"] == "mbpp_plus"
        for m in row["rows"]
        if m["what"] == "task id"
        for name in m["test_ids"]
    }
    assert named == {f"mbpp_plus/{i}" for i in expected["mbpp_plus_rows_100_377_task_ids_in_any_split"]}


def test_a_broken_test_set_of_another_task_is_named(tmp_path):
    (tmp_path / "test" / "mmlu").mkdir(parents=True)
    (tmp_path / "test" / "mmlu" / "test.jsonl").write_text("{}\n")
    splits = {"train": [gsm8k("a", "One?")]}
    found = report("gsm8k", splits, {"gsm8k": [gsm8k("t", "Two?")]}, tmp_path, origin="", dropped=[])
    assert list(found["unread"]) == ["mmlu"]
    assert "test.jsonl:1: no field 'subject'" in found["unread"]["mmlu"]
    assert hits(found) == ["mmlu could not be compared with"]


def test_repeats_names_the_item():
    found = repeats("gsm8k", [gsm8k("a", "One?"), gsm8k("b", "Two?")], "gsm8k", [gsm8k("t", "two")])
    assert {i: (row.id, row.like) for i, row in found.items()} == {1: ("b", "t")}
