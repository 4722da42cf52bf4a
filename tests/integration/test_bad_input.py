"""What a user can do wrong ends in one line that says what to do, exit code 2, and nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from run_folders import message_row, write_lines
from safetensors import SafetensorError

from pkt.models.lm import LM

INDEX = "model.safetensors.index.json"


def state(folder: Path) -> dict[str, bytes | None]:
    """Everything under a folder, with contents."""
    return {str(p): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.fixture
def refused(pkt, recipe, tmp_path, monkeypatch):
    """`refused(parts, *args, **sections)`: the run is refused in one line that holds the parts, before any weight is loaded."""

    def check(parts: list[str], *args: object, path: object = None, out: Path | None = None, **sections: object) -> str:
        out = out or tmp_path / "out"
        monkeypatch.setattr(LM, "_load", lambda lm: pytest.fail(f"{lm.name} was loaded"))
        path = path or recipe(**sections)
        before = state(tmp_path)
        done = pkt("run", path, "--out", out, *args)
        done.refuses(*parts)
        assert state(tmp_path) == before
        return done.err

    return check


def laten(**options: object) -> dict:
    return {"name": "laten", **options}


@pytest.mark.parametrize(
    ("sections", "parts"),
    [
        ({"sede": 1}, ["unknown key 'sede'", "did you mean 'seed'?"]),
        ({"evaluate": {"limits": 3}}, ["unknown key 'evaluate.limits'", "did you mean 'limit'?"]),
        ({"method": laten(step=3)}, ["unknown key 'method.step'", "did you mean 'steps'?"]),
        ({"seed": "one"}, ["seed: found 'one'", "expected a valid integer"]),
        ({"seed": 2**70}, ["seed: found", "expected"]),
        ({"method": laten(steps=2.5)}, ["method.steps: found 2.5", "expected a valid integer"]),
        ({"method": laten(lr="fast")}, ["method.lr: found 'fast'", "expected a valid number"]),
        ({"method": laten(lr=float("inf"))}, ["method.lr: found inf", "expected a finite number"]),
        ({"method": laten(transfer_rate=0.0)}, ["method.transfer_rate: found 0.0", "greater than 0"]),
        ({"method": laten(transfer_rate=1.01)}, ["method.transfer_rate: found 1.01", "less than or equal to 1"]),
        ({"method": laten(transfer_rate=0.02)}, ["rate 0.02 selects no attention neuron", "32 per layer", "0.03125"]),
        (
            {"method": laten(steps=9, schedule_steps=3)},
            ["steps is 9", "ends the schedule at 3", "set method.schedule_steps=9"],
        ),
        ({"method": {"name": "latten"}}, ["unknown method 'latten'", "did you mean 'laten'?"]),
        ({"method": "laten"}, ["method: found 'laten'", "name: laten"]),
        ({"target": None}, ["missing key 'target'", "add it"]),
        ({"source": "nano/sauce"}, ["no embedded model 'nano/sauce'", "nano/source"]),
        ({"source": "/nowhere/model"}, ["model folder /nowhere/model does not exist", "give an existing folder"]),
        ({"source": "some-body/some-model"}, ["some-body/some-model", "neither a folder here", "hub"]),
        ({"source": "not a name"}, ["'not a name'", "neither a folder here nor a valid hub name"]),
        ({"task": {"name": "gsm9k"}}, ["unknown task 'gsm9k'", "did you mean 'gsm8k'?"]),
        ({"task": {"name": "gsm8k", "data": "/nowhere"}}, ["no folder /nowhere", "splits/gsm8k/"]),
        ({"task": {"name": "nano/gsm8k", "data": "/nowhere"}}, ["nano/gsm8k is embedded", "leave task.data out"]),
        ({"evaluate": {"perplexity_text": sys.executable}}, ["perplexity_text", "is not UTF-8"]),
        ({"evaluate": {"perplexity_text": "/nowhere.txt"}}, ["perplexity_text", "no file /nowhere.txt"]),
    ],
)
def test_recipes(refused, sections, parts):
    err = refused(parts, **sections)
    assert len(err) < 400


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["--set", "method.stepps=3"], ["unknown key 'method.stepps'", "did you mean 'steps'?"]),
        (["--set", "methods.steps=3"], ["unknown key 'methods'", "did you mean 'method'?"]),
        (["--set", "method.steps"], ["expected key.path=value"]),
        (["--set", "seed.x=1"], ["seed: found {'x': 1}", "expected a valid integer"]),
        (["--set", "method.lr=[1"], ["method.lr=[1", "not valid YAML"]),
        (["--device", "gpu"], ["device 'gpu' cannot be used here", "expected auto, cpu, cuda"]),
        (["--device", "cuda:99"], ["device 'cuda:99' cannot be used here", "GPUs that torch sees"]),
        (["--device", "meta"], ["device 'meta' cannot be used here"]),
        (["--batch-size", "0"], ["--batch-size", "greater than or equal to 1", "see `pkt run --help`"]),
        (["--nonsense"], ["No such option", "--nonsense", "see `pkt run --help`"]),
        (["extra"], ["extra", "see `pkt run --help`"]),
    ],
)
def test_options(refused, args, parts):
    refused(parts, *args)


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["rum"], ["No such command 'rum'", "Did you mean 'run'"]),
        (["run"], ["Missing", "RECIPE"]),
        (["run", "nano_tuned"], ["Missing option", "--out"]),
        (["plan", "nano_tune"], ["no recipe 'nano_tune'", "did you mean 'nano_tuned'?"]),
        (["plan", "nano_tuned", "--device", "gpu"], ["device 'gpu' cannot be used here"]),
        (["methods", "latten"], ["unknown method 'latten'", "did you mean 'laten'?"]),
        (["tasks", "nano/mmlo"], ["unknown task 'nano/mmlo'", "did you mean 'nano/mmlu'?"]),
        (["align", "/nowhere"], ["/nowhere: no recipe.yaml in it", "pkt locate RECIPE --out DIR"]),
        (["report", "/nowhere"], ["/nowhere", "no such file"]),
    ],
)
def test_commands(pkt, args, parts):
    done = pkt(*args)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    for part in parts:
        assert part in done.err


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"- 1\n", ["expected keys and values, found list"]),
        (b"seed: 1\nseed: 2\n", ["key 'seed' stands twice (line 2)", "remove one"]),
        (b"seed: [\n", ["not valid YAML in line 2"]),
        (b"name: \xff\n", ["not UTF-8"]),
        (b"name: a\x00b\n", ["not valid YAML"]),
        (b"", ["expected keys and values, found nothing"]),
    ],
)
def test_recipe_files(refused, tmp_path, content, parts):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    refused([str(path), *parts], path=path)


@pytest.fixture
def model_folder(make_lm, tmp_path) -> Path:
    """A copy of the tiny target, to be damaged."""
    return Path(shutil.copytree(make_lm("llama", "target").name, tmp_path / "model"))


def index_alone(folder: Path, text: str) -> None:
    """An index, and no file that holds all."""
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / INDEX).write_text(text)


def change_config(folder: Path, **fields: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def test_unsupported_architecture(refused, model_folder):
    (model_folder / "config.json").write_text('{"model_type": "gpt2", "n_layer": 2}')
    parts = ["architecture 'gpt2' is not supported", "llama", "qwen2", str(model_folder)]
    refused(parts, source=str(model_folder))
    refused(parts, target=str(model_folder))


def test_pair_that_lacks_what_the_method_needs(refused, make_lm):
    source, target = make_lm("llama", "source").name, make_lm("llama", "target").name
    refused(["has 2 layers, but the target has 3", "swap the models"], source=target, target=source)


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (lambda f: (f / "config.json").unlink(), ["no config.json in this folder"]),
        (lambda f: (f / "config.json").write_text("{"), ["transformers cannot read its config"]),
        (lambda f: (f / "config.json").write_text('{"model_type": "martian"}'), ["cannot read its config", "martian"]),
        (lambda f: change_config(f, logit_soup=3.0), ["the config sets logit_soup=3.0", "use a checkpoint without it"]),
        (lambda f: change_config(f, num_attention_heads=5), ["hidden size (32)", "check its config.json"]),
        (lambda f: change_config(f, hidden_size="wide"), ["hidden_size", "check its config.json"]),
        (lambda f: change_config(f, vocab_size=5), ["model.embed_tokens.weight has shape", "expected [5, 32]"]),
        (lambda f: change_config(f, num_hidden_layers=3), ["do not fit its config", "layers.2", "shape none"]),
        (lambda f: (f / "model.safetensors").unlink(), ["no model.safetensors and no index"]),
        (lambda f: os.truncate(f / "model.safetensors", 5000), ["model.safetensors: not a whole safetensors file"]),
        (
            lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
            ["model.safetensors: not a whole safetensors file", "copy the checkpoint again"],
        ),
        *(
            (lambda f, text=text: index_alone(f, text), [f"{INDEX}: damaged", "copy the checkpoint again"])
            for text in (
                '{"weight_map": {"lm_head.wei',
                '{"metadata": {}}',
                '{"weight_map": []}',
                '{"weight_map": {"a": 1}}',
                "[]",
            )
        ),
        (
            lambda f: (f / "adapter_config.json").write_text("{}"),
            ["holds a model and an adapter", "a folder of their own"],
        ),
        (lambda f: [p.unlink() for p in f.glob("tokenizer*")], ["no tokenizer could be read", "copy its tokenizer"]),
        (lambda f: (f / "tokenizer.json").write_text("{"), ["no tokenizer could be read", "copy its tokenizer"]),
    ],
)
def test_damaged_models(refused, model_folder, damage, parts):
    damage(model_folder)
    refused([str(model_folder), *parts], target=str(model_folder))


def folder_task(data: Path) -> dict:
    return {"name": "gsm8k", "data": str(data), "prompt_style": "plain"}


LONG = message_row("flurbs", 1)
LONG["messages"][0]["content"] = "How much? " * 600


@pytest.mark.parametrize(
    ("name", "lines", "parts"),
    [
        ("extract", [message_row("flurbs", 1), ""], ["extract.jsonl:2: empty line", "remove it"]),
        ("align", ['{"messages": ['], ["align.jsonl:1: not valid JSON", "column"]),
        ("align", ["[1]"], ["align.jsonl:1: found list, expected a JSON object"]),
        ("extract", [{"message": []}], ["extract.jsonl:1: no field 'messages'", "found 'message'"]),
        ("extract", [{"messages": [{"role": "user", "content": "x"}]}], ["extract.jsonl:1", "['user', 'assistant']"]),
        ("align", [], ["align.jsonl: empty file"]),
        ("align", None, ["align.jsonl: no such file"]),
        ("extract", [LONG], ["gsm8k/extract.jsonl:1 has", "tokens, but the context holds 512", "shorten or remove it"]),
        ("align", [LONG], ["gsm8k/align.jsonl:1 has", "tokens, but the context holds 512", "shorten or remove it"]),
        ("align", [message_row("flurbs", 2)], ["splits extract and align overlap", "remove one of them"]),
    ],
)
def test_damaged_splits(refused, data, name, lines, parts):
    path = data / "splits" / "gsm8k" / f"{name}.jsonl"
    path.unlink() if lines is None else write_lines(path, lines)
    refused(parts, task=folder_task(data))


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ({"question": "How much?", "answer": "7"}, ["test.jsonl:1: field answer has no '#### number'"]),
        ({"question": "How much?", "answer": "#### seven"}, ["test.jsonl:1", "'seven', expected a number"]),
        ({"question": 7, "answer": "#### 7"}, ["test.jsonl:1: field question is int, expected str"]),
    ],
)
def test_damaged_test_rows(refused, data, line, parts):
    write_lines(data / "test" / "gsm8k" / "test.jsonl", [line])
    refused(parts, task=folder_task(data))


def test_a_test_item_in_another_split(refused, data):
    row = {"question": "How much are 1 blicks?", "answer": "#### 7"}
    write_lines(data / "test" / "gsm8k" / "test.jsonl", [row])
    shared = message_row("blicks", 1)
    shared["messages"][0]["content"] = "Answer the following question.\n\nQuestion: How much are 1 blicks?"
    write_lines(data / "splits" / "gsm8k" / "align.jsonl", [shared])
    refused(["splits align and test overlap", "align.jsonl:1", "test.jsonl:1", "remove one"], task=folder_task(data))


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({"content": "Answer: ..."}, ["extract.jsonl:1", "no answer in the assistant's 'Answer: ...'"]),
        ({"content": "..."}, ["extract.jsonl:1", "response '...' has no scorable token", "remove it"]),
        ({"content": ""}, ["extract.jsonl:1", "response '' has no token"]),
    ],
)
def test_responses_without_a_token_to_score(refused, data, row, parts):
    made = message_row("flurbs", 1)
    made["messages"][1] |= row
    if not row["content"].startswith("Answer"):
        made["answer"] = "7"
    write_lines(data / "splits" / "gsm8k" / "extract.jsonl", [made])
    refused(parts, task=folder_task(data))


def test_a_raw_line_separator_inside_a_string_is_valid(pkt, recipe, data, tmp_path):
    row = message_row("flurbs", 1)
    row["messages"][0]["content"] = "How much\u2028are\u0085flurbs?"
    path = data / "splits" / "gsm8k" / "extract.jsonl"
    write_lines(path, [row])
    assert "\u2028" in path.read_text(encoding="utf-8")
    test = data / "test" / "gsm8k" / "test.jsonl"
    write_lines(test, [{"question": "How\u2028much?", "answer": "#### 7"}])
    args = ("--set", "method.steps=1")
    done = pkt("run", recipe(task=folder_task(data)), "--out", tmp_path / "out", *args)
    assert done.code == 0, done.err
    lines = (tmp_path / "out" / "scores.jsonl").read_text(encoding="utf-8").split("\n")
    assert len(lines) == 4
    assert "How\u2028much?" in json.loads(lines[0])["prompt"]


def test_code_that_cannot_be_graded_is_refused_before_the_work(refused, data):
    rows = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"def f(): return {n}"}]}
        for n in range(3)
    ]
    write_lines(data / "splits" / "mbpp" / "extract.jsonl", rows[:1])
    write_lines(data / "splits" / "mbpp" / "align.jsonl", rows[1:])
    write_lines(
        data / "test" / "mbpp" / "test.jsonl",
        [{"task_id": 3, "text": "Write f.", "code": "def f(): return 3", "test_list": ["assert f() == 3"]}],
    )
    refused(["mbpp: grading runs the code", "--allow-code-execution"], task={"name": "mbpp", "data": str(data)})


def test_a_tokenizer_without_chat_template(refused, make_lm, model_folder, shared_data):
    (model_folder / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((model_folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (model_folder / "tokenizer_config.json").write_text(json.dumps(config))
    task = {"name": "gsm8k", "data": str(shared_data), "prompt_style": "chat_template"}
    for role in ("source", "target"):
        refused(["has no chat template", "prompt style tulu or plain"], task=task, **{role: str(model_folder)})


def test_output_folder_of_another_recipe(refused, finished):
    refused(["holds the run of recipe 'tiny', not of 'other'", "another folder"], "--set", "name=other", out=finished)


def test_output_folder_with_foreign_files(refused, tmp_path):
    folder = tmp_path / "full"
    folder.mkdir()
    (folder / "thesis.tex").write_text("\\begin{document}")
    refused(["holds files but no run", "give a new or empty folder"], out=folder)


@pytest.mark.parametrize("below", ["", "deeper", "deeper/still"])
def test_a_file_as_output_folder(refused, tmp_path, below):
    (tmp_path / "file").write_text("x")
    refused([f"{tmp_path / 'file'} is a file", "give a folder"], out=tmp_path / "file" / below)


def test_an_output_folder_that_cannot_be_made(refused, tmp_path):
    refused(["File name too long", "check the path"], out=tmp_path / ("x" * 300))


def test_a_damaged_recipe_in_the_output_folder(refused, finished):
    (finished / "recipe.yaml").write_text("[")
    refused(["recipe.yaml: not valid YAML"], out=finished)


def test_a_bad_option_leaves_a_finished_run_as_it_was(refused, finished):
    refused(["selects no attention neuron"], "--set", "method.transfer_rate=0.02", out=finished)


def test_a_real_process_prints_one_line_and_exits_with_2(recipe, tmp_path):
    command = [
        sys.executable,
        "-c",
        "from pkt.cli import main; main()",
        "run",
        str(recipe(source="some-body/some-model")),
    ]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: some-body/some-model is neither a folder here nor in the hub cache")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space is left on the disk; free some and run the same"),
        (SafetensorError("Io error: No space left on device (os error 28)"), "no space is left on the disk; free some"),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried ..."
            ),
            "the device ran out of memory; try a lower --batch-size",
        ),
    ],
)
def test_a_full_disk_or_memory_says_what_to_do(monkeypatch, capsys, error, said):
    import pkt.execute
    from pkt.cli import main

    def fail(*_args):
        raise error

    monkeypatch.setattr(pkt.execute, "execute", fail)
    monkeypatch.setattr("sys.argv", ["pkt", "run", "nano_tuned", "--out", "nowhere"])
    with pytest.raises(SystemExit) as e:
        main()
    assert e.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")


def test_a_folder_in_use_is_refused(pkt, recipe, tmp_path):
    from pkt.files import locked

    with locked(tmp_path / "out"):
        done = pkt("run", recipe(), "--out", tmp_path / "out")
    assert done.code == 2
    assert "out is in use by another run; wait for it, or give another folder" in done.err
    assert list((tmp_path / "out").iterdir()) == []
