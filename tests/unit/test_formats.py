"""Rows become the prompts of the protocol, and outputs are graded as numbers, choices and functions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pkt.errors import DataError
from pkt.nano import world
from pkt.tasks.base import Example
from pkt.tasks.code import CODE_PREFIX
from pkt.tasks.formats import FORMATS

WHERE = "here.jsonl:7"


def messages(user: str, assistant: str, **more: object) -> dict:
    return {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}], **more}


def gsm8k(answer: str) -> Example:
    return Example(id="g", prompt="q", response="", answer=answer, unit="g")


def test_table() -> None:
    assert set(FORMATS) == {"mmlu", "gsm8k", "humaneval", "mbpp", "mbpp_plus", "math"}
    published = {name: form for name, form in FORMATS.items() if name != "math"}
    assert {name: f.prefix for name, f in published.items()} == {
        "mmlu": "The answer is:",
        "gsm8k": "Answer:",
        "humaneval": "Here is the completed function:\n\n\n```python\n",
        "mbpp": "Here is the completed function:\n\n\n```python\n",
        "mbpp_plus": "Here is the completed function:\n\n\n```python\n",
    }
    assert [name for name, f in FORMATS.items() if f.ranks] == ["mmlu"]
    assert {f.max_new_tokens for f in published.values() if not f.ranks} == {512}


@pytest.mark.parametrize(
    ("answer", "output", "right"),
    [
        ("18", " 9 * 2 = $18. So the answer is 18.", True),
        ("18", "So the answer is 18.00", True),
        ("18", "So the answer is 1800.", False),
        ("18", "18, no, 19", False),
        ("60000", "that is 60,000 dollars", True),
        ("1234567", "1,234,567", True),
        ("-3", "So the answer is -3.", True),
        ("-3", "So the answer is 3.", False),
        ("-3", "So the answer is -$3.", True),
        ("-3", "So the answer is \N{MINUS SIGN}3.", True),
        ("3", "So the answer is 6-$3.", True),
        ("1234", "It costs $1,234.00", True),
        ("3", "So the answer is -3.", False),
        ("3", "it is 10-7=3", True),
        ("7", "10-7", True),
        ("7", "(x)-7", True),
        ("0.5", "So the answer is .5", True),
        ("0.5", "$-0.50 + 1 = $0.50", True),
        ("5", "page-5", True),
        ("18", "none", False),
        ("18", "", False),
        ("18", "18" + "0" * 5000, False),
    ],
)
def test_gsm8k_grades_the_last_number_by_value(answer: str, output: str, right: bool) -> None:
    assert FORMATS["gsm8k"].grade(gsm8k(answer), output) == float(right)


@given(st.integers(-(10**9), 10**9), st.text(alphabet="ab .:$", max_size=10), st.sampled_from(["", ".0", ".00", "."]))
def test_gsm8k_finds_any_number_behind_text(number: int, before: str, after: str) -> None:
    output = f"{before} {number:,}{after}"
    assert FORMATS["gsm8k"].grade(gsm8k(str(number)), output) == 1.0
    assert FORMATS["gsm8k"].grade(gsm8k(str(number + 1)), output) == 0.0


def test_gsm8k_split_row() -> None:
    row = messages(
        "Answer the following question.\n\nQuestion: How many?",
        "Answer: 2 + 2 = 4, -7 no. So the answer is 60,000.",
        id="gsm_3",
        dataset="gsm",
    )
    found = FORMATS["gsm8k"].from_messages(row, WHERE)
    assert (found.id, found.unit, found.tier, found.answer, found.choices) == ("gsm_3", "gsm_3", "", "60000", ())
    assert found.response.startswith(FORMATS["gsm8k"].prefix)


def test_gsm8k_test_row() -> None:
    row = {
        "question": " How much? ",
        "answer": "She has 1 + 1 = <<1+1=2>>2.\nThen 2 * 600 = <<2*600=1200>>1200.\n#### 1,200",
    }
    found = FORMATS["gsm8k"].from_test(row, WHERE)
    assert found.prompt == "Answer the following question.\n\nQuestion: How much?"
    assert found.response == "Answer: She has 1 + 1 = 2. Then 2 * 600 = 1200. So the answer is 1200."
    assert found.answer == "1200"
    assert FORMATS["gsm8k"].grade(found, found.response) == 1.0


def test_mmlu_rows() -> None:
    test = {"subject": "abstract_algebra", "question": "What?", "choices": ["0", "4", "2", "6"], "answer": 1}
    found = FORMATS["mmlu"].from_test(test, WHERE)
    assert found.prompt == (
        "The following are multiple choice questions (with answers) about abstract algebra.\n\nWhat?\nA. 0\nB. 4\nC. 2\nD. 6\nAnswer:"
    )
    assert (found.response, found.answer, found.unit, found.choices) == (
        "The answer is: B",
        "B",
        "abstract_algebra",
        ("A", "B", "C", "D"),
    )
    split = FORMATS["mmlu"].from_messages(
        messages(found.prompt, "The answer is: B", category="abstract_algebra", id="abstract_algebra_4"), WHERE
    )
    assert (split.prompt, split.answer, split.unit, split.choices) == (
        found.prompt,
        "B",
        "abstract_algebra",
        ("A", "B", "C", "D"),
    )
    assert [FORMATS["mmlu"].grade(found, choice) for choice in "ABCD"] == [0.0, 1.0, 0.0, 0.0]


def test_code_rows_are_read_and_their_grade_is_a_run() -> None:
    mbpp = {
        "text": "Add one.",
        "code": "def add(x):\r\n  return x + 1",
        "task_id": 11,
        "test_setup_code": "one = 1\r\n",
        "test_list": ["assert add(one) == 2", "assert add(2) == 3"],
    }
    found = FORMATS["mbpp"].from_test(mbpp, WHERE)
    assert found.prompt == "Complete the following python function.\n\n\nAdd one.\ndef add(x)"
    assert found.response == CODE_PREFIX + "def add(x):\n  return x + 1"
    assert (found.header, found.tests) == ("", "one = 1\n\nassert add(one) == 2\nassert add(2) == 3")
    humaneval = {
        "task_id": "HumanEval/0",
        "entry_point": "add",
        "test": "def check(candidate):\n    assert candidate(1) == 2\n",
        "prompt": 'def add(x):\n    """One more."""\n',
        "canonical_solution": "    return x + 1\n",
    }
    other = FORMATS["humaneval"].from_test(humaneval, WHERE)
    assert other.prompt == "Complete the following python function.\n\n\n" + humaneval["prompt"]
    assert other.id == other.unit == "HumanEval/0"
    assert other.header == humaneval["prompt"]
    assert other.tests == humaneval["test"] + "\ncheck(add)"
    plus = {"prompt": "Add one.", "code": "\ndef add(x):\n  return x + 1", "task_id": 2, "test": "assert add(1) == 2"}
    third = FORMATS["mbpp_plus"].from_test(plus, WHERE)
    assert third.prompt == "Complete the following python function.\n\n\nAdd one.\ndef add(x)"
    assert (third.id, third.tests) == ("mbpp_plus/2", "assert add(1) == 2")
    for name, example in (("mbpp", found), ("humaneval", other), ("mbpp_plus", third)):
        assert FORMATS[name].executes(example)
        with pytest.raises(DataError, match="run its tests"):
            FORMATS[name].grade(example, "def add(x):\n    return x + 1")
    bare = Example("b", "q", "", "def f(x): return x", "u")
    assert not FORMATS["mbpp"].executes(bare)
    with pytest.raises(DataError, match="b: .*an item of a test set"):
        FORMATS["mbpp"].grade(bare, "")


@pytest.mark.parametrize("name", world.TASKS)
def test_nano_rows(name: str) -> None:
    form = FORMATS[name]
    for split, rows in world.splits(name).items():
        for row in rows:
            found = form.from_messages(row, row["id"])
            user, assistant = (m["content"] for m in row["messages"])
            assert (found.id, found.prompt, found.response) == (row["id"], user, assistant)
            assert (found.unit, found.tier, found.answer) == (row["unit"], row["tier"], row["answer"])
            assert found.choices == tuple(row.get("choices", ()))
            assert found.response.startswith(form.prefix)
            rest = found.response.removeprefix(form.prefix)
            assert form.grade(found, rest) == 1.0, (split, found.id)
            assert not form.executes(found)


def test_nano_code_is_graded_by_value() -> None:
    example = Example("e", "q", "", "def f(x):\n    return 3 + x * 4", "u", tier="new")
    assert FORMATS["humaneval"].grade(example, "def f(x):\n    return 4 * x + 3\n```") == 1.0
    assert FORMATS["humaneval"].grade(example, "def f(x):\n    return 3 + x * 5") == 0.0
    assert FORMATS["humaneval"].grade(example, "__import__('os').abort()") == 0.0


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("gsm8k", {}, "no field 'messages'"),
        ("gsm8k", {"messages": "text"}, "messages is str, expected list"),
        ("gsm8k", {"messages": []}, r"roles \[\]"),
        ("gsm8k", {"messages": ["a", "b"]}, "roles"),
        ("gsm8k", {"messages": [{"role": "user", "content": "q"}] * 2}, "roles"),
        ("gsm8k", {"messages": [{"role": "user"}, {"role": "assistant", "content": "a"}]}, "no field 'content'"),
        ("gsm8k", messages("q", 3), "content is int, expected str"),  # type: ignore[arg-type]
        ("gsm8k", messages("q", "Answer: I do not know."), "no answer"),
        ("gsm8k", messages("q", "Answer: 3", id=4), "id is int, expected str"),
        ("mmlu", messages("q", "The answer is: E"), "no answer.*A, B, C, D"),
        ("mmlu", messages("q", "The answer is: Rome", choices=["Paris"]), "no answer.*Paris"),
        ("mmlu", messages("q", "The answer is: A", choices="ABCD"), "choices is str, expected list"),
        ("mmlu", messages("q", "The answer is: A", unit=None), "unit is NoneType, expected str"),
    ],
)
def test_bad_split_rows(name: str, row: dict, message: str) -> None:
    with pytest.raises(DataError, match=f"{WHERE}: .*{message}"):
        FORMATS[name].from_messages(row, WHERE)


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("gsm8k", {"question": "q"}, "no field 'answer'"),
        ("gsm8k", {"question": "q", "answer": "4"}, "####"),
        ("gsm8k", {"question": "q", "answer": "so #### four"}, "'four', expected a number"),
        ("mmlu", {"subject": "s", "question": "q", "choices": ["1"] * 3, "answer": 0}, "3 choices"),
        ("mmlu", {"subject": "s", "question": "q", "choices": ["1", "2", "3", None], "answer": 0}, "4 texts"),
        ("mmlu", {"subject": "s", "question": "q", "choices": ["1"] * 4, "answer": 4}, "answer 4"),
        ("mmlu", {"subject": "s", "question": "q", "choices": ["1"] * 4, "answer": True}, "answer is bool"),
        ("mbpp", {"text": "t", "code": "c", "task_id": "11"}, "task_id is str, expected int"),
        (
            "mbpp",
            {"text": "t", "code": "c", "task_id": 11, "test_list": []},
            "test_list holds \\[\\], expected assertions",
        ),
        (
            "mbpp",
            {"text": "t", "code": "c", "task_id": 11, "test_list": [1]},
            "test_list holds \\[1\\], expected assertions",
        ),
        ("mbpp_plus", {"prompt": "t", "code": "c", "task_id": 11}, "no field 'test'"),
        ("humaneval", {"task_id": "HumanEval/0", "prompt": "p"}, "no field 'canonical_solution'"),
        (
            "humaneval",
            {"task_id": "H/0", "prompt": "def f():\n", "canonical_solution": "", "test": "", "entry_point": "g"},
            "entry_point is 'g', expected the name of a function",
        ),
    ],
)
def test_bad_test_rows(name: str, row: dict, message: str) -> None:
    with pytest.raises(DataError, match=f"{WHERE}: .*{message}"):
        FORMATS[name].from_test(row, WHERE)
