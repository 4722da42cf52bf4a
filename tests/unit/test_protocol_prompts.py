"""What is sent, byte by byte, for every benchmark, prompt style and number of worked examples; expected texts are written out by hand."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pkt.errors import DataError
from pkt.evaluation.asking import Asked, Asking
from pkt.nano.world import TASKS as NANO
from pkt.tasks.base import Example, Plain, Task, fingerprint
from pkt.tasks.formats import FORMATS
from pkt.tasks.jsonl import read_jsonl
from pkt.tasks.prompts import encode, render, reply
from pkt.tasks.protocol import GREEDY, Protocol
from pkt.tasks.shots import EMBEDDED
from pkt.tasks.sources import task

MMLU_ROWS = [
    {
        "subject": "high_school_physics",
        "question": "What falls?",
        "choices": ["up", "down", "left", "None"],
        "answer": 1,
    },
    {"subject": "high_school_physics", "question": "What is light?", "choices": ["a", "b", "c", "d"], "answer": 3},
    {"subject": "high_school_physics", "question": "What\n\nis\nheat?", "choices": ["w", "x", "y", "z"], "answer": 0},
]
HEADER = "The following are multiple choice questions (with answers) about high school physics.\n\n"
FALLS = "What falls?\nA. up\nB. down\nC. left\nD. None\nAnswer:"
LIGHT = "What is light?\nA. a\nB. b\nC. c\nD. d\nAnswer: D\n\n"
HEAT = "What\n\nis\nheat?\nA. w\nB. x\nC. y\nD. z\nAnswer: A\n\n"
GSM = {"question": "How many eggs?", "answer": "1 + 1 = <<1+1=2>>2\n#### 2"}
TREES = "Question: Trees?\nAnswer: There are 6. So the answer is 6.\n\n"
CARS = "Question: Cars?\nAnswer: 3 + 2 = 5. So the answer is 5.\n\n"
WORKED = [
    {"question": "Trees?", "cot_answer": "There are 6. So the answer is 6.", "short_answer": "6"},
    {"question": "Cars?", "cot_answer": "3 + 2 = 5. So the answer is 5.", "short_answer": "5"},
]
CODE = 'import math\n\n\ndef area(r):\n    """ Area of a circle. """\n'
HUMANEVAL = {
    "task_id": "HumanEval/7",
    "prompt": CODE,
    "entry_point": "area",
    "canonical_solution": "    return math.pi * r * r\n",
    "test": "def check(candidate):\n    assert candidate(0) == 0\n",
}
ASKED = "Write a Python function `area(r)` to solve the following problem:\nArea of a circle."
MBPP = {
    "task_id": 11,
    "text": "Write a function to add.",
    "code": "def add(a, b) :\r\n    return a + b",
    "test_setup_code": "",
    "test_list": ["assert add(1, 2) == 3"],
    "challenge_test_list": [],
}
PLUS = {
    "task_id": 12,
    "prompt": "Add them.",
    "code": "\nimport re\ndef add(a, b):\n    return a + b\n",
    "test": "assert add(1, 2) == 3",
}
MATH_ROW = {"problem": "What is $1+1$?", "solution": "It is $\\boxed{2}$.", "level": "1", "type": "a"}
HALF = {"problem": "Half of 4?", "solution": "It is $\\boxed{2}$."}


def toy(name: str, row: dict, worked: Sequence[dict] = ()) -> Task:
    form = FORMATS[name]
    read = form.from_worked or form.from_test
    shots = [read(shot, f"w:{i}") for i, shot in enumerate(worked)]
    return Task(name, form, {"test": [form.from_test(row, "t:1")]}.__getitem__, "toy", worked=lambda: shots)


def sent(tokenizer, found: Task, style: str, shots: int = 0, context: int = 4096) -> str:
    return asked(tokenizer, found, style, Protocol(shots=shots), context).text


def asked(tokenizer, found: Task, style: str, protocol: Protocol, context: int = 4096) -> Asked:
    (item,) = Asking(found, style, tokenizer, context, protocol).all(found.split("test"))
    return item


def tulu(user: str, start: str) -> str:
    return f"<|user|>\n{user}\n<|assistant|>\n{start}"


def templated(tokenizer, user: str, start: str) -> str:
    messages = [{"role": "user", "content": user}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) + start


def check(tokenizer, found: Task, shots: int, user: str, start: str, plain: str) -> None:
    assert sent(tokenizer, found, "tulu", shots) == tulu(user, start)
    assert sent(tokenizer, found, "chat_template", shots) == templated(tokenizer, user, start)
    assert sent(tokenizer, found, "plain", shots) == plain


@pytest.mark.parametrize(("shots", "before"), [(0, ""), (1, LIGHT), (2, LIGHT + HEAT)])
def test_mmlu(tokenizer, shots, before) -> None:
    question = HEADER + before + FALLS
    check(tokenizer, toy("mmlu", MMLU_ROWS[0], MMLU_ROWS[1:]), shots, question, "The answer is:", question)


def test_mmlu_shows_examples_of_its_subject_alone(tokenizer) -> None:
    other = [{**row, "subject": "astronomy"} for row in MMLU_ROWS]
    found = toy("mmlu", MMLU_ROWS[0], [*other, *MMLU_ROWS[1:]])
    assert sent(tokenizer, found, "plain", 2) == HEADER + LIGHT + HEAT + FALLS
    with pytest.raises(
        DataError, match=r"evaluate.shots is 3, but there are 2 worked examples about high_school_physics"
    ):
        sent(tokenizer, found, "plain", 3)


@pytest.mark.parametrize(
    ("shots", "user"),
    [
        (0, "Answer the following question.\n\nQuestion: How many eggs?"),
        (1, f"Answer the following questions.\n\n{TREES}Question: How many eggs?"),
        (2, f"Answer the following questions.\n\n{TREES}{CARS}Question: How many eggs?"),
    ],
)
def test_gsm8k(tokenizer, shots, user) -> None:
    check(tokenizer, toy("gsm8k", GSM, WORKED), shots, user, "Answer:", f"{user}\nAnswer:")


@pytest.mark.parametrize("has_pack", [True, False])
def test_humaneval(tokenizer, has_pack) -> None:
    row = {**HUMANEVAL, "instruction": ASKED} if has_pack else HUMANEVAL
    user = ASKED if has_pack else f"Complete the following python function.\n\n\n{CODE}"
    packed = f"Here is the function:\n\n```python\n{CODE}"
    start = packed if has_pack else "Here is the completed function:\n\n\n```python\n"
    check(tokenizer, toy("humaneval", row), 0, user, start, CODE)


def test_mbpp(tokenizer) -> None:
    user = "Complete the following python function.\n\n\nWrite a function to add.\ndef add(a, b) "
    start = "Here is the completed function:\n\n\n```python\n"
    check(tokenizer, toy("mbpp", MBPP), 0, user, start, "Write a function to add.\ndef add(a, b) ")


def test_mbpp_plus(tokenizer) -> None:
    user = "Complete the following python function.\n\n\nAdd them.\nimport re\ndef add(a, b)"
    start = "Here is the completed function:\n\n\n```python\n"
    check(tokenizer, toy("mbpp_plus", PLUS), 0, user, start, "Add them.\nimport re\ndef add(a, b)")


@pytest.mark.parametrize(("shots", "before"), [(0, ""), (1, "Problem: Half of 4?\nSolution: It is $\\boxed{2}$.\n\n")])
def test_math(tokenizer, shots, before) -> None:
    head = "Solve the following problem and put the final answer in \\boxed{}.\n\n"
    user = f"{head}{before}Problem: What is $1+1$?"
    check(tokenizer, toy("math", MATH_ROW, [HALF]), shots, user, "Solution:", f"{user}\nSolution:")


def test_stop_texts_and_protocols() -> None:
    code = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
    stops = {
        name: (form.stops("tulu"), form.stops("chat_template"), form.stops("plain")) for name, form in FORMATS.items()
    }
    fence = ("```",)
    assert stops["mmlu"] == ((), (), ())
    assert stops["gsm8k"] == ((), (), ("\n",))
    assert stops["humaneval"] == ((*code, "\n```"), (*code, "\n```"), code)
    assert stops["mbpp"] == stops["mbpp_plus"] == (fence, fence, (*code, "```"))
    assert FORMATS["humaneval"].protocol == Protocol(0, 20, 0.1, 0.95)
    assert FORMATS["mbpp"].protocol == FORMATS["mbpp_plus"].protocol == Protocol(0, 20, 0.1, 1.0)
    assert {FORMATS[name].protocol for name in ("mmlu", "gsm8k", "math")} == {GREEDY}


def test_plain_texts_to_train_on_continue_the_prompt_that_is_scored(tokenizer) -> None:
    """The right answer follows the very text that evaluation sends."""
    rows = [
        ("mmlu", MMLU_ROWS[0], " B"),
        ("gsm8k", GSM, " 1 + 1 = 2 So the answer is 2."),
        ("humaneval", {**HUMANEVAL, "instruction": ASKED}, "    return math.pi * r * r\n"),
        ("mbpp", MBPP, ":\n    return a + b"),
        ("math", MATH_ROW, " It is $\\boxed{2}$."),
    ]
    for name, row, rest in rows:
        found = toy(name, row)
        (example,) = found.split("test")
        whole = render(example, "plain", tokenizer) + reply(example, "plain")
        assert whole == sent(tokenizer, found, "plain") + rest, name
        ids = encode(example, "plain", tokenizer).ids
        assert ids == tokenizer(whole)["input_ids"]


def test_plain_code_in_the_prompt_belongs_to_the_answer() -> None:
    (example,) = toy("mbpp", MBPP).split("test")
    assert example.plain == Plain("Write a function to add.\ndef add(a, b) ", ":\n    return a + b", "def add(a, b) ")
    split = FORMATS["mbpp"].from_messages(
        {
            "messages": [
                {"role": "user", "content": "Complete the following python function.\n\n\nAdd.\ndef add(a, b) "},
                {
                    "role": "assistant",
                    "content": "Here is the completed function:\n\n\n```python\ndef add(a, b) :\r\n    return a",
                },
            ]
        },
        "s:1",
    )
    assert split.plain == Plain("Add.\ndef add(a, b)", " :\r\n    return a", "def add(a, b)")


@pytest.mark.parametrize("style", ["tulu", "plain"])
def test_an_answer_put_in_the_place_of_the_response(style, tokenizer) -> None:
    for name, row in (
        ("mmlu", MMLU_ROWS[0]),
        ("gsm8k", GSM),
        ("humaneval", {**HUMANEVAL, "instruction": ASKED}),
        ("mbpp", MBPP),
    ):
        found = toy(name, row)
        (example,) = found.split("test")
        other = found.format.answered(example, " other", style)
        assert render(other, style, tokenizer) + reply(other, style) == sent(tokenizer, found, style) + " other", name


def test_a_forced_start_alone_leaves_the_end_of_sequence_to_learn(tokenizer) -> None:
    found = toy("mmlu", MMLU_ROWS[0])
    begun = found.format.answered(found.split("test")[0], "", "plain")
    encoded = encode(begun, "plain", tokenizer, eos=True)
    assert encoded.response_start == len(encoded.ids) - 1
    assert encoded.ids[-1] == tokenizer.eos_token_id
    with pytest.raises(DataError, match="has no token"):
        encode(begun, "plain", tokenizer)


def test_wordings_are_laid_out_anew(tokenizer) -> None:
    form = FORMATS["mmlu"]
    row = {
        "messages": [{"role": "user", "content": HEADER + FALLS}, {"role": "assistant", "content": "The answer is: B"}],
        "paraphrases": ["Say it otherwise. Answer:"],
    }
    examples = {"extract": [form.from_messages(row, "x:1")]}
    found = Task("mmlu", form, lambda split: examples.get(split, []), "toy")
    (other,) = found.paraphrases(found.split("extract")[0])
    assert render(other, "plain", tokenizer) + reply(other, "plain") == "Say it otherwise. Answer: B"


def test_worked_examples_are_dropped_from_the_end_where_the_context_is_short(tokenizer) -> None:
    found = toy("gsm8k", GSM, WORKED)
    lengths = [asked(tokenizer, found, "plain", Protocol(shots=n)).length for n in range(3)]
    answer = found.format.max_new_tokens
    for n in range(3):
        most = lengths[n + 1] - 1 if n < 2 else 4000
        for length in (lengths[n], most):
            item = asked(tokenizer, found, "plain", Protocol(shots=2), length + answer)
            assert (item.shots, item.text) == (n, sent(tokenizer, found, "plain", n))


def test_mmlu_has_2048_tokens_for_worked_examples_and_its_context_without(tokenizer, caplog) -> None:
    def of_words(count: int) -> Task:
        return toy("mmlu", {**MMLU_ROWS[0], "question": "1" * count}, MMLU_ROWS[1:])

    bare = asked(tokenizer, of_words(1), "plain", Protocol(shots=2)).length - 1
    fits = asked(tokenizer, of_words(2048 - bare), "plain", Protocol(shots=2))
    assert (fits.length, fits.shots) == (2048, 2)
    assert not caplog.messages
    short = asked(tokenizer, of_words(2049 - bare), "plain", Protocol(shots=2))
    assert short.shots == 1
    assert caplog.messages == [
        "mmlu: 1 of 1 prompts have fewer than 2 worked examples, for their length; 1.00 on average"
    ]
    assert asked(tokenizer, of_words(3000), "plain", Protocol(shots=2)).shots == 0, "longer without than 2,048"


@pytest.mark.parametrize("style", ["tulu", "plain"])
def test_prompts_that_are_too_long(tokenizer, style) -> None:
    rows = [GSM, {**GSM, "question": "How " + "very " * 60 + "many?"}]
    form = replace(FORMATS["gsm8k"], max_new_tokens=10)
    examples = [form.from_test(row, f"t:{i}") for i, row in enumerate(rows)]
    found = Task("gsm8k", form, {"test": examples}.__getitem__, "toy")
    whole = [Asking(found, style, tokenizer, 4096, GREEDY).one(e) for e in examples]
    context = whole[0].length + 20
    with pytest.raises(
        DataError,
        match=rf"t:1: its prompt has {whole[1].length} tokens and its answer up to 10 more, but the context holds {context};.*`wrong`.*`cut`",
    ):
        Asking(found, style, tokenizer, context, GREEDY).all(examples)
    wrong = Asking(found, style, tokenizer, context, Protocol(too_long="wrong")).all(examples)
    assert [item.fits for item in wrong] == [True, False]
    assert wrong == [replace(item, room=context - 10) for item in whole]
    first, cut = Asking(found, style, tokenizer, context, Protocol(too_long="cut")).all(examples)
    assert (first.text, first.is_cut, cut.is_cut) == (whole[0].text, False, True)
    assert whole[1].text.endswith(cut.text)
    assert cut.length == len(tokenizer(cut.text)["input_ids"]) == context - 10
    assert len(cut.text) < len(whole[1].text)


@pytest.mark.parametrize("style", ["tulu", "plain", "chat_template"])
def test_a_cut_prompt_holds_some_of_its_question(tokenizer, style) -> None:
    found = toy("gsm8k", GSM)
    (example,) = found.split("test")
    text, new = sent(tokenizer, found, style), found.format.max_new_tokens
    after = len(text.rpartition(example.prompt)[2])
    special = len(tokenizer("", add_special_tokens=style != "chat_template")["input_ids"])
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    least = special + sum(end > len(text) - after for _, end in offsets) + 1  # one token of the question
    cut = asked(tokenizer, found, style, Protocol(too_long="cut"), new + least)
    assert (cut.is_cut, cut.length) == (True, least)
    assert len(cut.text) > after
    for context in (new - 1, new, new + 2, new + least - 1):
        for too_long in ("stop", "cut"):
            with pytest.raises(DataError, match=f"t:1: .* but the context holds {context}; .*no room.*`wrong`") as e:
                asked(tokenizer, found, style, Protocol(too_long=too_long), context)
            assert "or `cut` (" not in str(e.value)
        assert not asked(tokenizer, found, style, Protocol(too_long="wrong"), context).fits
    with pytest.raises(DataError, match=r"or `cut` \("):
        asked(tokenizer, found, style, GREEDY, new + least)


def test_one_prompt_of_which_nothing_would_be_left_is_named(tokenizer) -> None:
    items = [FORMATS["mmlu"].from_test({**row, "question": "word " * 60}, f"t:{i}") for i, row in enumerate(MMLU_ROWS)]
    items[1] = replace(items[1], choices=("A", "B " * 200))
    found = Task("mmlu", FORMATS["mmlu"], {"test": items}.__getitem__, "toy")
    asking = Asking(found, "plain", tokenizer, 100, Protocol(too_long="cut"))
    assert [item.is_cut for item in asking.all([items[0], items[2]])] == [True, True]
    with pytest.raises(DataError, match=r"example t:1: [^;]*context holds 100; a cut prompt"):
        asking.all(items)


def test_nano_texts_are_those_that_the_models_learnt() -> None:
    """The hash was taken before formats had a plain style of their own."""
    seen, count = hashlib.sha256(), 0
    for name in NANO:
        found = task(f"nano/{name}")
        assert found.format.protocol == GREEDY
        for split in ("extract", "align", "train", "valid", "test", "unlabelled"):
            for e in found.split(split):
                for style in ("tulu", "plain"):
                    start = found.format.opening(e, style)
                    seen.update(f"{render(e, style, None)}{reply(e, style)}\0{start}\0".encode())
                    count += 1
            seen.update(fingerprint(found.split(split)).encode())
    assert count == 39800
    assert seen.hexdigest() == "1fa43b1eff7d759777c5f993788f282d88f08b92eed6e7521f2efe5ae8a7c280"


class TestPublishedData:
    """The splits were made for the protocol's chat prompts without worked examples."""

    def test_gsm8k(self, data_folder) -> None:
        found = task("gsm8k", data_folder)
        for e in found.split("train"):
            question = e.prompt.removeprefix("Answer the following question.\n\nQuestion: ")
            again = FORMATS["gsm8k"].from_test({"question": question, "answer": f"#### {e.answer}"}, "x")
            assert again.prompt == e.prompt

    def test_mmlu(self, data_folder) -> None:
        found, pool = task("mmlu", data_folder), []
        for _, row in read_jsonl(data_folder / "test" / "mmlu" / "dev.jsonl.gz"):
            pool.append(FORMATS["mmlu"].from_test(row, "x"))
        texts = {(e.prompt, e.response, e.unit) for e in pool}
        shared = [
            e
            for name in ("extract", "align", "train")
            for e in found.split(name)
            if (e.prompt, e.response, e.unit) in texts
        ]
        assert len(shared) == 137, "every row of dev in the splits, to the byte: white space around questions stays"

    def test_mbpp(self, data_folder) -> None:
        rows = {}
        for _, row in read_jsonl(data_folder / "test" / "mbpp" / "mbpp.jsonl"):
            made = FORMATS["mbpp"].from_test(row, "x")
            rows[made.prompt.strip()] = made
        found = task("mbpp", data_folder)
        for e in (e for name in ("extract", "align", "train") for e in found.split(name)):
            same = rows[e.prompt.replace("\r\n", "\n")]
            assert same.response.strip() == e.response.replace("\r\n", "\n").strip()
            assert e.plain is not None
            assert e.plain.given

    def test_humaneval_is_asked_with_the_pack(self, data_folder) -> None:
        found = task("humaneval", data_folder)
        for _, row in read_jsonl(data_folder / "test" / "humaneval" / "humanevalpack_python.jsonl"):
            number = int(row["task_id"].removeprefix("Python/"))
            example = found.split("test")[number]
            assert example.prompt == row["instruction"]
            assert example.header == example.opening.removeprefix("Here is the function:\n\n```python\n")
        assert number == 163

    def test_humaneval_without_the_pack(self, data_folder, tmp_path, caplog) -> None:
        (tmp_path / "test" / "humaneval").mkdir(parents=True)
        here = tmp_path / "test" / "humaneval" / "test.jsonl"
        here.write_bytes((data_folder / "test" / "humaneval" / "test.jsonl").read_bytes())
        examples = task("humaneval", tmp_path).split("test")
        assert all(e.prompt == f"Complete the following python function.\n\n\n{e.header}" for e in examples)
        assert "scores lower" in caplog.text

    def test_worked_examples(self, data_folder, tmp_path, tokenizer) -> None:
        found = task("gsm8k", data_folder)
        published = Path(data_folder / "test" / "gsm8k" / "cot_exemplars.jsonl")
        assert [row for _, row in read_jsonl(EMBEDDED["gsm8k"])] == [row for _, row in read_jsonl(published)]
        item = Asking(found, "tulu", tokenizer, 8192, Protocol(shots=8)).one(found.split("test")[0])
        rows = [json.loads(line) for line in published.read_text(encoding="utf-8").split("\n") if line]
        shots = [f"Question: {row['question']}\nAnswer: {row['cot_answer']}" for row in rows]
        question = found.split("test")[0].prompt.removeprefix("Answer the following question.\n\n")
        assert item.text == tulu("\n\n".join(["Answer the following questions.", *shots, question]), "Answer:")
        (tmp_path / "test" / "gsm8k").mkdir(parents=True)
        (tmp_path / "test" / "gsm8k" / "test.jsonl").write_text(json.dumps(GSM) + "\n")
        assert len(task("gsm8k", tmp_path).shots(found.split("test")[0], 8)) == 8
        physics: Example = next(e for e in task("mmlu", data_folder).split("test") if e.unit == "college_physics")
        assert [e.unit for e in task("mmlu", data_folder).shots(physics, 5)] == ["college_physics"] * 5
