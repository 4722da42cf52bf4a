"""Samples, dropped prompts and executed programs, from `score` to a certificate that is verified."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from run_folders import make_data, write_lines

from pkt.errors import ConfigError, PktError
from pkt.evaluation import grading
from pkt.evaluation.execution import Execution, Grade
from pkt.evaluation.grading import earned, grades
from pkt.evaluation.harness import score
from pkt.evaluation.sampling import drawn
from pkt.evaluation.statistics import by_part
from pkt.models.lm import LM
from pkt.tasks.base import Example, Task
from pkt.tasks.code import CODE_PREFIX, INSTRUCTION
from pkt.tasks.formats import FORMATS
from pkt.tasks.mmlu_groups import GROUPS, SUBJECTS
from pkt.tasks.protocol import Protocol
from pkt.tasks.sources import task

SAMPLED = Protocol(samples=3, temperature=1.0, top_p=0.9)


@pytest.fixture
def model(tiny_target) -> Iterator:
    with tiny_target.loaded() as loaded:
        yield copy.deepcopy(loaded)


@pytest.fixture
def writing() -> Task:
    form = replace(FORMATS["gsm8k"], max_new_tokens=6, plain_stop=())
    items = [Example(f"w/{i}", f"Question: {'Why ' * (i % 3)}{i}?", "Answer: 1", "1", f"u{i}") for i in range(5)]
    return Task("toy/write", form, {"test": items}.__getitem__, "toy")


@torch.no_grad()
def by_hand(model, tokenizer, text: str, number: int, seed: int, steps: int) -> str:
    """One sample of one prompt, token by token, without padding or cache."""
    start = tokenizer(text)["input_ids"]
    stream = random.Random(f"{seed} {number} {' '.join(map(str, start))}")
    ids = list(start)
    for _ in range(steps):
        logits = model(torch.tensor([ids])).logits[:, -1]
        ids.append(int(drawn(logits, torch.tensor([stream.random()]), SAMPLED.temperature, SAMPLED.top_p)))
        if ids[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(ids[len(start) :], skip_special_tokens=True)


def test_samples_are_those_drawn_token_by_token(model, tokenizer, writing) -> None:
    lines = score(model, tokenizer, writing, style="plain", protocol=SAMPLED, seed=3, batch_size=4)
    for line in lines:
        expected = [by_hand(model, tokenizer, line["prompt"], number, 3, 6) for number in range(3)]
        assert line["outputs"] == expected
        assert "output" not in line
    assert len({text for line in lines for text in line["outputs"]}) > 5


def test_samples_depend_on_the_seed_and_on_nothing_else(model, tokenizer, writing) -> None:
    first = score(model, tokenizer, writing, style="plain", protocol=SAMPLED, seed=1)
    torch.rand(5), random.random()
    model.generation_config.top_k, model.generation_config.temperature = 1, 9.0
    assert score(model, tokenizer, writing, style="plain", protocol=SAMPLED, seed=1, batch_size=2) == first
    few = score(model, tokenizer, writing, style="plain", protocol=SAMPLED, seed=1, limit=2)
    assert [line for line in first if line["id"] in {few_line["id"] for few_line in few}] == few
    other = score(model, tokenizer, writing, style="plain", protocol=SAMPLED, seed=2)
    assert [line["outputs"] for line in other] != [line["outputs"] for line in first]


def test_a_line_counts_its_right_samples(model, tokenizer, writing) -> None:
    def grade(_example: object, output: str) -> float:
        return float(sum(map(ord, output)) % 2)

    graded = replace(writing.format, grade=grade)
    lines = score(model, tokenizer, replace(writing, format=graded), style="plain", protocol=SAMPLED)
    for line in lines:
        assert line["correct"] == sum(grade(None, text) for text in line["outputs"])
        assert line["score"] == line["correct"] / 3
    assert len({line["correct"] for line in lines}) > 1


def test_greedy_samples_are_refused_before_any_work(model, tokenizer, writing) -> None:
    with (
        model.register_forward_pre_hook(lambda *_: pytest.fail("the model was asked")),
        pytest.raises(ConfigError, match="set evaluate.temperature above 0, or evaluate.samples to 1"),
    ):
        score(model, tokenizer, writing, style="plain", protocol=Protocol(samples=2))


def test_prompts_that_count_as_wrong_are_not_sent(model, tokenizer, writing) -> None:
    test = writing.split("test")
    long = replace(test[2], prompt="Question: " + "Why " * 600)
    found = replace(writing, load=lambda split: [*test[:2], long, *test[3:]], _splits={})
    usual = score(model, tokenizer, writing, style="plain")
    lines = score(model, tokenizer, found, style="plain", protocol=Protocol(too_long="wrong"))
    assert [line for line in lines if line["id"] != "w/2"] == [line for line in usual if line["id"] != "w/2"]
    assert (lines[2]["output"], lines[2]["score"], lines[2]["too_long"]) == ("", 0.0, "wrong")
    cut = score(model, tokenizer, found, style="plain", protocol=Protocol(too_long="cut"))[2]
    assert cut["too_long"] == "cut"
    assert cut["prompt"] in f"{long.prompt}\nAnswer:"
    assert cut["output"]
    every = replace(found, load=lambda split: [long], _splits={})
    (only,) = score(model, tokenizer, every, style="plain", protocol=replace(SAMPLED, too_long="wrong"))
    assert (only["outputs"], only["correct"], only["score"]) == (["", "", ""], 0, 0.0)


def test_lines_name_their_worked_examples(model, tokenizer, writing) -> None:
    shots = [Example(f"s/{i}", f"Question: {'Who ' * 20 * i}?", "Answer: 5", "5", "s") for i in range(3)]
    found = replace(writing, worked=lambda: shots)
    lines = score(model, tokenizer, found, style="plain", protocol=Protocol(shots=3))
    assert {line["shots"] for line in lines} == {3}
    context = len(tokenizer(lines[0]["prompt"])["input_ids"]) + 5
    model.config.max_position_embeddings = context
    assert {line["shots"] for line in score(model, tokenizer, found, style="plain", protocol=Protocol(shots=3))} == {2}


def code_row(number: int) -> dict:
    return {
        "task_id": number,
        "text": f"Write a function to add {number}.",
        "code": f"def add_{number}(x):\r\n    return x + {number}",
        "test_setup_code": "",
        "test_list": [f"assert add_{number}(1) == {number + 1}"],
        "challenge_test_list": [],
    }


def code_task() -> Task:
    examples = [FORMATS["mbpp"].from_test(code_row(i), f"t:{i}") for i in (11, 12)]
    return Task("mbpp", FORMATS["mbpp"], {"test": examples}.__getitem__, "toy")


def test_equal_programs_run_once_and_plain_code_gets_its_header_back(monkeypatch) -> None:
    seen: list[list[tuple[str, str]]] = []

    def graded(task, items, execution):
        seen.append([(example.id, text) for example, text in items])
        return [Grade(float("right" in text), "") for _, text in items]

    monkeypatch.setattr(grading, "grade_programs", graded)
    one, two = code_task().split("test")
    items = [(one, "right"), (two, "right"), (one, "wrong"), (one, "right")]
    assert grades(code_task(), items, "plain", Execution(allowed=True)) == [1, 1, 0, 1]
    assert seen == [[(one.id, "def add_11(x)right"), (two.id, "def add_12(x)right"), (one.id, "def add_11(x)wrong")]]
    seen.clear()
    grades(code_task(), items[:1], "tulu", Execution(allowed=True))
    assert seen == [[(one.id, "right")]]


def test_grades_are_earned_again_where_programs_may_be_run(monkeypatch) -> None:
    monkeypatch.setattr(
        grading, "grade_programs", lambda task, items, execution: [Grade(float("+" in text), "") for _, text in items]
    )
    found = code_task()
    examples = {e.id: e for e in found.split("test")}
    one, two = examples
    lines = [
        {"id": one, "outputs": ["+", "-", "+"], "score": 2 / 3},
        {"id": two, "output": "-", "score": 0.0},
        {"id": two, "outputs": ["", ""], "too_long": "wrong", "score": 0.0},
    ]
    assert earned(found, examples, lines, "tulu", Execution(allowed=True)) == [2 / 3, 0.0, 0.0]
    assert earned(found, examples, lines, "tulu", Execution()) == [None, None, 0.0]


@pytest.fixture
def code_data(tmp_path, monkeypatch) -> Path:
    """MBPP in small, with short answers."""
    folder = tmp_path / "data"
    for name, numbers in (("extract", (1, 2)), ("align", (3, 4, 5)), ("train", (6, 7))):
        rows = [code_row(i) for i in numbers]
        messages = [
            {
                "messages": [
                    {"role": "user", "content": f"{INSTRUCTION}{row['text']}\n{row['code'].split(':')[0]}"},
                    {"role": "assistant", "content": CODE_PREFIX + row["code"]},
                ]
            }
            for row in rows
        ]
        write_lines(folder / "splits" / "mbpp" / f"{name}.jsonl", messages)
    write_lines(folder / "test" / "mbpp" / "test.jsonl", [code_row(i) for i in (11, 12)])
    monkeypatch.setitem(FORMATS, "mbpp", replace(FORMATS["mbpp"], max_new_tokens=5))
    monkeypatch.setattr("pkt.report.html.write", lambda folder: None)
    return folder


def section(data: Path) -> dict:
    return {"name": "mbpp", "data": str(data), "prompt_style": "plain"}


@pytest.mark.parametrize("command", ["run", "certify"])
def test_without_leave_the_refusal_comes_before_any_model(
    command, pkt, recipe, code_data, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(LM, "_load", lambda lm: pytest.fail(f"{lm.name} was loaded"))
    done = pkt(command, recipe(task=section(code_data)), "--out", tmp_path / "out")
    assert done.code == 2
    assert done.err.startswith("error: mbpp: grading runs the code that the model writes; pass --allow-code-execution")
    assert done.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
    done = pkt(command, recipe(task=section(code_data)), "--out", tmp_path / "out", "--unsafe-no-sandbox")
    assert done.code == 2
    assert "add --allow-code-execution" in done.err


def test_a_run_without_scores_needs_no_leave_and_its_evaluation_does(
    pkt, recipe, code_data, tmp_path, monkeypatch
) -> None:
    out = tmp_path / "out"
    done = pkt("run", recipe(task=section(code_data), evaluate={"arms": []}), "--out", out)
    assert done.code == 0, done.err
    assert "nothing was scored" in done.out
    content = (out / "recipe.yaml").read_text(encoding="utf-8")
    (out / "recipe.yaml").write_text(content.replace("arms: []", "arms: [target]"), encoding="utf-8")
    done = pkt("evaluate", out)
    assert (done.code, "--allow-code-execution" in done.err) == (2, True)
    monkeypatch.setattr(grading, "grade_programs", lambda task, items, execution: [Grade(1.0, "") for _ in items])
    monkeypatch.setattr(Execution, "check", lambda execution, name: None)
    done = pkt("evaluate", out, "--allow-code-execution")
    assert done.code == 0, done.err
    assert "pass@20" in done.out
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert summary["protocol"] == {
        "version": 2,
        "shots": 0,
        "samples": 20,
        "temperature": 0.1,
        "top_p": 1.0,
        "too_long": "stop",
    }
    assert [at["k"] for at in summary["scores"][0]["pass_at"]] == [1, 5, 10, 20]


def test_a_certificate_of_sampled_programs_is_verified_with_and_without_leave(
    recipe, code_data, tmp_path, monkeypatch
) -> None:
    from pkt.evidence import certify
    from pkt.machine import Machine
    from pkt.recipe_files import load_recipe
    from pkt.verify import verify

    try:
        Execution(allowed=True).check("mbpp")
        leave = Execution(allowed=True)
    except PktError:
        leave = Execution(allowed=True, is_sandboxed=False)
    path = recipe(
        task=section(code_data),
        evaluate={"samples": 2, "temperature": 1.0},
        certificate={"seeds": 2, "learning_rates": "recipe", "arms": ["random_source"], "keep_deltas": False},
    )
    machine = Machine("cpu", workers=1, execution=leave)
    certify(load_recipe(str(path)), tmp_path / "out", machine)
    checks = {check.name: check for check in verify(tmp_path / "out", machine)}
    assert all(check.holds is not False for check in checks.values()), checks
    assert (checks["grades"].holds, checks["grades"].detail) == (True, "12 outputs graded again")
    checks = {check.name: check for check in verify(tmp_path / "out", Machine("cpu"))}
    assert checks["grades"].holds is None
    assert "the programs of 12 were not run: --allow-code-execution" in checks["grades"].detail
    assert all(check.holds is not False for check in checks.values())


def test_a_recipe_sets_the_protocol_and_another_one_scores_anew(pkt, recipe, tmp_path) -> None:
    data = make_data(tmp_path / "data")
    made = {"name": "gsm8k", "data": str(data), "prompt_style": "plain"}
    out = tmp_path / "out"
    done = pkt("run", recipe(task=made, evaluate={"arms": ["target"]}), "--out", out)
    assert done.code == 0, done.err
    first = json.loads((out / "stages.json").read_text(encoding="utf-8"))
    done = pkt("run", recipe(task=made, evaluate={"arms": ["target"], "samples": 2, "temperature": 0.7}), "--out", out)
    assert done.code == 0, done.err
    second = json.loads((out / "stages.json").read_text(encoding="utf-8"))
    assert first["align"] == second["align"]
    assert first["evaluate target"]["key"] != second["evaluate target"]["key"]
    lines = [json.loads(line) for line in (out / "scores.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {len(line["outputs"]) for line in lines} == {2}
    for wrong, message in (
        ({"samples": 2}, "answered greedily"),
        ({"shots": 9}, "evaluate.shots is 9, but there are 8 worked examples"),
        ({"top_p": 0.0}, "evaluate.top_p: found 0.0; expected greater than 0"),
        ({"too_long": "skip"}, "evaluate.too_long: found 'skip'"),
    ):
        done = pkt("run", recipe(task=made, evaluate=wrong), "--out", tmp_path / "other")
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert message in done.err


def test_mmlu_by_group_sub_category_and_subject(data_folder) -> None:
    published = json.loads((data_folder / "test" / "mmlu" / "categories.json").read_text(encoding="utf-8"))
    assert {group: list(parts) for group, parts in GROUPS.items()} == published["categories"]
    assert {subject: [parts[1]] for subject, parts in SUBJECTS.items()} == published["subcategories"]
    test = task("mmlu", data_folder).split("test")
    assert {e.unit for e in test} == set(SUBJECTS)
    lines = [{"arm": "target", "seed": 0, "id": e.id, "unit": e.unit, "score": float(e.answer in "AB")} for e in test]
    rows = {(row["kind"], row["name"]): row for row in by_part(lines)}
    assert len(rows) == 4 + 17 + 57
    for kind, names in (("group", GROUPS), ("subject", SUBJECTS)):
        of_kind = [rows[kind, name] for name in names]
        assert sum(row["num_items"] for row in of_kind) == 14042
    chosen = [line for line in lines if SUBJECTS[line["unit"]][1] == "law"]
    law = rows["sub-category", "law"]
    assert law["num_items"] == len(chosen)
    assert law["score"] == pytest.approx(sum(line["score"] for line in chosen) / len(chosen))
    physics = rows["subject", "college_physics"]
    p = physics["score"]
    assert physics["standard_error"] == pytest.approx((p * (1 - p) / (physics["num_items"] - 1)) ** 0.5)


def test_an_answer_keeps_the_spaces_with_which_it_starts(model) -> None:
    """A tokenizer that marks spaces at the start of words drops the first of what it decodes: an indentation, in Python."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from pkt.evaluation.harness import _harness_model
    from pkt.evaluation.sampling import Sampler

    words = ["<unk>", "</s>", "x", "▁", "return", "\n", ":"]
    made = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = decoders.Metaspace(prepend_scheme="first")
    spaced = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", pad_token="</s>", unk_token="<unk>")
    answer = [3, 3, 3, 3, 4, 3, 2]
    assert spaced.decode(answer) == "   return x"
    lm = _harness_model(model, spaced, "plain", 1, 64, Sampler(0))
    assert lm.tok_decode(answer) == "    return x"
    assert lm.tok_decode([*answer, 1]) == "    return x"
