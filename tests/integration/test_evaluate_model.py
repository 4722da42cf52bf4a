"""`pkt evaluate MODEL --task ...`: checkpoints, adapters and deltas on several tasks, the folder that keeps them, and what is refused."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from run_folders import make_data, write_lines
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

from pkt.evaluation.harness import score
from pkt.inject.adapter import export_adapter
from pkt.inject.changes import Lines, LowRank
from pkt.inject.delta import Delta
from pkt.inject.export import export
from pkt.inject.given import given
from pkt.models.lm import LM
from pkt.tasks.sources import task

SUBJECTS = ("anatomy", "virology")


def mmlu_rows(count: int) -> list[dict]:
    return [
        {"subject": SUBJECTS[i % 2], "question": f"Why {i}?", "choices": [f"{i}a", "b", "c", "d"], "answer": i % 4}
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory) -> Path:
    """A data folder with GSM8K and MMLU."""
    folder = make_data(tmp_path_factory.mktemp("benchmarks"))
    write_lines(folder / "test" / "mmlu" / "test.jsonl", mmlu_rows(12))
    write_lines(folder / "test" / "mmlu" / "dev.jsonl", mmlu_rows(6))
    return folder


@pytest.fixture
def change(tiny_target) -> Delta:
    """Rows and a low rank, large enough to be heard, with the base in the provenance as a run writes it."""
    gen = torch.Generator().manual_seed(3)
    low = LowRank(torch.randn(2, 32, generator=gen), torch.randn(32, 2, generator=gen))
    rows = Lines(torch.tensor([0, 3, 40]), torch.randn(3, 32, generator=gen), 0)
    target = {"name": tiny_target.name, "revision": None}
    return Delta({(0, "up"): rows, (1, "q"): low}, {"recipe": {"target": target}})


@pytest.fixture
def evaluate(pkt, benchmarks, monkeypatch):
    """`evaluate(model, ...)`: what `--json` says; in the tulu style on the CPU."""

    def run(model: object, *args: object, tasks: tuple[str, ...] = ("mmlu", "gsm8k")) -> dict:
        named = [part for name in tasks for part in ("--task", name)]
        done = pkt("-q", "evaluate", model, *named, "--data", benchmarks, "--device", "cpu", "--json", *args)
        assert done.code == 0, done.err
        return json.loads(done.out)

    return run


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "scores.jsonl").read_text(encoding="utf-8").splitlines()]


def answers(folder: Path) -> list[tuple]:
    return [(line["task"], line["id"], line["output"], line["score"]) for line in lines_of(folder)]


def test_scores_are_those_of_the_harness(evaluate, benchmarks, tiny_target, tmp_path):
    found = evaluate(tiny_target.name, "--out", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == found
    lines = lines_of(tmp_path / "out")
    for record in found["tasks"]:
        of_task = task(record["task"], benchmarks)
        with tiny_target.loaded() as model:
            wanted = score(model, tiny_target.tokenizer, of_task, style="tulu")
        mine = [
            {k: v for k, v in line.items() if k not in ("arm", "seed")}
            for line in lines
            if line["task"] == of_task.name
        ]
        assert mine == wanted
        (row,) = record["scores"]
        assert row["score"] == pytest.approx(sum(line["score"] for line in wanted) / len(wanted))
        assert row["num_items"] == len(wanted) == {"mmlu": 12, "gsm8k": 3}[of_task.name]
        assert row["chance"] == {"mmlu": 0.25, "gsm8k": 0.0}[of_task.name]
        assert record["protocol"]["style"] == "tulu"
    assert found["model"] == {
        "name": tiny_target.name, "kind": "checkpoint", "weights": tiny_target.digest, "dtype": "auto"
    }  # fmt: skip
    assert {part["name"] for part in found["tasks"][0]["parts"] if part["kind"] == "subject"} == set(SUBJECTS)


def test_a_delta_and_its_adapter_score_as_what_they_are_merged_to(evaluate, tiny_target, change, tmp_path):
    change.save(tmp_path / "delta.safetensors")
    export_adapter(change, tiny_target, tmp_path / "adapter")
    export(change, tiny_target, tmp_path / "merged")
    names = {
        "delta": tmp_path / "delta.safetensors",
        "adapter": tmp_path / "adapter",
        "checkpoint": tmp_path / "merged",
    }
    out = {kind: tmp_path / f"{kind}-scores" for kind in [*names, "target"]}
    for kind, name in names.items():
        assert evaluate(name, "--out", out[kind])["model"]["kind"] == kind
    evaluate(tiny_target.name, "--out", out["target"])
    assert answers(out["delta"]) == answers(out["adapter"]) == answers(out["checkpoint"])
    assert answers(out["delta"]) != answers(out["target"])


def test_logits_of_an_adapter_are_those_of_peft(tiny_target, change, tmp_path):
    export_adapter(change, tiny_target, tmp_path / "adapter")
    ids = torch.tensor([[1, 5, 9, 3, 17]])
    base = AutoModelForCausalLM.from_pretrained(tiny_target.name)
    with torch.no_grad():
        before = base(ids).logits
        wanted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()(ids).logits
        read = given(str(tmp_path / "adapter"), device="cpu")
        with read.loaded() as model:
            torch.testing.assert_close(model(ids).logits, wanted, rtol=1e-4, atol=1e-4)
        with read.lm.loaded() as model:
            assert torch.equal(model(ids).logits, before), "the base is left as it was"
    assert float((wanted - before).abs().max()) > 0.1


def test_an_adapter_that_peft_saved_is_scored(evaluate, tiny_target, tmp_path):
    with tiny_target.private("float32") as base:
        model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
        model.save_pretrained(tmp_path / "peft")
    found = evaluate(tmp_path / "peft", tasks=("mmlu",))["model"]
    assert (found["kind"], found["base"]) == ("adapter", tiny_target.name)


GPTQ = {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 8}}
REMOTE = {"model_type": "martian", "auto_map": {"AutoConfig": "mine.Mine"}}


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        (GPTQ, ["transformers cannot load it", "GPTQ"]),
        ({"vocab_size": 800}, ["do not fit its config", "mismatched keys", "lm_head.weight"]),
        (REMOTE, ["transformers cannot read its config"]),
    ],
)
def test_what_transformers_cannot_load_is_one_line(pkt, tiny_target, tmp_path, monkeypatch, fields, parts):
    """And no code of a checkpoint runs, whoever says yes."""
    folder = shutil.copytree(tiny_target.name, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    pkt("-q", "evaluate", folder, "--task", "nano/mmlu", "--device", "cpu").refuses(*parts)
    assert not (tmp_path / "ran").exists()


def test_any_architecture_is_scored(evaluate, tokenizer, tmp_path):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=512)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    scores = [record["scores"][0] for record in evaluate(tmp_path / "gpt2")["tasks"]]
    assert [row["num_items"] for row in scores] == [12, 3]


def test_options_reach_the_tasks_that_can_follow_them(evaluate, tiny_target, tmp_path):
    options = ("--shots", 2, "--samples", 2, "--temperature", 1.5, "--top-p", 0.9, "--limit", 4, "--seed", 5)
    mmlu, gsm8k = evaluate(tiny_target.name, *options, "--out", tmp_path / "out", "--style", "plain")["tasks"]
    assert mmlu["protocol"] | {"too_long": ""} == {
        "style": "plain", "limit": 4, "seed": 5, "shots": 2, "samples": 1, "temperature": 0.0, "top_p": 1.0, "too_long": ""
    }  # fmt: skip
    assert (gsm8k["protocol"]["samples"], gsm8k["protocol"]["temperature"], gsm8k["protocol"]["top_p"]) == (2, 1.5, 0.9)
    assert [row["k"] for row in gsm8k["scores"][0]["pass_at"]] == [1]
    assert mmlu["scores"][0]["num_items"] == 4
    assert all(line["seed"] == 5 and line["shots"] == 2 for line in lines_of(tmp_path / "out"))


def test_the_table_says_what_was_asked(pkt, benchmarks, tiny_target):
    done = pkt("evaluate", tiny_target.name, "--task", "mmlu", "--task", "gsm8k", "--data", benchmarks, "--limit", 2)
    assert done.code == 0, done.err
    assert "tulu, 0 shots, ranked" in done.out
    assert "tulu, 0 shots, greedy" in done.out
    assert "0.250" in done.out
    assert "about 0" in done.out
    assert "mmlu: 2 items drawn by seed 0" in done.out
    assert "(checkpoint), weights" in done.out


@pytest.fixture
def scored(monkeypatch) -> list[str]:
    """The tasks that are really scored."""
    seen: list[str] = []

    def noted(model, tokenizer, of_task, **options):
        seen.append(of_task.name)
        return score(model, tokenizer, of_task, **options)

    monkeypatch.setattr("pkt.evaluation.harness.score", noted)
    return seen


def test_done_tasks_are_kept_and_changed_ones_scored_again(evaluate, tiny_target, tmp_path, scored, monkeypatch):
    out = ("--out", tmp_path / "out")
    first = evaluate(tiny_target.name, *out)
    assert evaluate(tiny_target.name, *out) == first
    assert scored == ["mmlu", "gsm8k"]
    evaluate(tiny_target.name, *out, "--limit", 2, tasks=("gsm8k",))
    assert scored == ["mmlu", "gsm8k", "gsm8k"]
    kept = json.loads((tmp_path / "out" / "evaluation.json").read_text())["tasks"]
    assert [record["scores"][0]["num_items"] for record in kept] == [12, 2]
    monkeypatch.setattr(LM, "_load", lambda lm: pytest.fail("loaded for nothing"))
    assert evaluate(tiny_target.name, *out, tasks=("mmlu",))["tasks"] == first["tasks"][:1]


def test_every_task_names_what_it_ran_on(evaluate, tiny_target, tmp_path):
    out = ("--out", tmp_path / "out")
    evaluate(tiny_target.name, *out, "--batch-size", 3, tasks=("mmlu",))
    found = evaluate(tiny_target.name, *out, "--batch-size", 5)["tasks"]
    assert [record["environment"]["batch_size"] for record in found] == [3, 5]


def test_an_interrupted_evaluation_continues(evaluate, benchmarks, tiny_target, tmp_path, scored, monkeypatch):
    from pkt.standalone import Wanted
    from pkt.standalone import evaluate as run

    wanted, model = Wanted(("mmlu", "gsm8k"), benchmarks), given(tiny_target.name, device="cpu")

    def killed(*args, **options):
        if args[2].name == "gsm8k":
            raise KeyboardInterrupt
        return score(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr("pkt.evaluation.harness.score", killed)
        with pytest.raises(KeyboardInterrupt):
            run(model, wanted, folder=tmp_path / "out")
    found = run(model, wanted, folder=tmp_path / "out")
    assert scored == ["gsm8k"]
    assert [record["task"] for record in found["tasks"]] == ["mmlu", "gsm8k"]
    whole = run(model, wanted)
    assert [r["scores"] for r in whole["tasks"]] == [r["scores"] for r in found["tasks"]]


def test_changed_lines_are_scored_again(evaluate, tiny_target, tmp_path, scored):
    out = tmp_path / "out"
    evaluate(tiny_target.name, "--out", out)
    before = answers(out)
    path = out / "scores.jsonl"
    path.write_text(path.read_text().replace('"score": 0.0', '"score": 1.0', 1))
    evaluate(tiny_target.name, "--out", out)
    assert len(scored) == 3
    assert sorted(answers(out)) == sorted(before)
    for number, text in enumerate(("{", "3\n"), 1):
        path.write_text(text)
        evaluate(tiny_target.name, "--out", out)
        assert len(scored) == 3 + 2 * number
    assert sorted(answers(out)) == sorted(before)


@pytest.fixture
def refused(pkt, monkeypatch, tmp_path):
    """`refused(args, *parts)`: one line that holds the parts; nothing is loaded, nothing written."""
    monkeypatch.setattr(LM, "_load", lambda lm: pytest.fail(f"{lm.name} was loaded"))

    def check(args: tuple[object, ...], *parts: str) -> None:
        before = sorted(tmp_path.rglob("*"))
        done = pkt("evaluate", *args)
        done.refuses(*parts)
        assert sorted(tmp_path.rglob("*")) == before

    return check


def test_confusions_of_models_are_refused(refused, finished, tiny_target, make_lm, change, tmp_path):
    on = ("--task", "nano/mmlu")
    adapter = tmp_path / "adapter"
    export_adapter(change, tiny_target, adapter)
    refused((finished, *on), "is a run folder", str(finished / "model"), "leave --task out")
    refused((tiny_target.name,), "is no run folder", "--task gsm8k")
    refused(("nano/target",), "is no run folder", "--task gsm8k")
    refused((finished, "--style", "plain", "--limit", 3), "--style, --limit needs --task")
    refused(("nano/targt", *on), "no embedded model 'nano/targt'")
    refused(("/nowhere/model", *on), "model folder /nowhere/model does not exist")
    refused(("not a name", *on), "neither a folder here nor a valid hub name")
    refused((tmp_path, *on), "no config.json and no adapter_config.json")
    refused((adapter / "adapter_model.safetensors", *on), "is a file of an adapter", "name its folder")
    refused((finished / "recipe.yaml", *on), "is a file, but no delta")
    refused((finished / "model" / "model.safetensors", *on), "not a delta of this package")
    refused((tiny_target.name, "--base", "nano/target", *on), "--base is of an adapter or a delta")
    other = make_lm("llama", "target", rms_norm_eps=1e-5)
    refused((adapter, "--base", other.name, *on), "was made for another base", "use its own base")
    wrong = (finished / "delta.safetensors", "--base", make_lm("llama", "source").name, *on)
    refused(wrong, "this delta was made for", "use its own base, or say --any-base")
    refused((*wrong, "--any-base"), "which does not fit")
    same_name = shutil.copytree(
        other.name, tmp_path / "twin" / Path(tiny_target.name).name
    )  # and shapes; its weights are others
    refused(
        (finished / "delta.safetensors", "--base", same_name, *on), "this delta was made for another base", "weights"
    )


def test_odd_changes_are_refused(refused, tiny_target, change, tmp_path):
    on = ("--task", "nano/mmlu")
    Delta(change.changes, {}).save(tmp_path / "bare.safetensors")
    refused((tmp_path / "bare.safetensors", *on), "does not say which base", "--base")
    lost = {"recipe": {"target": {"name": "/nowhere/base", "revision": None}}}
    Delta(change.changes, lost).save(tmp_path / "lost.safetensors")
    refused((tmp_path / "lost.safetensors", *on), "was made for the base /nowhere/base", "does not exist", "--base")
    export_adapter(change, tiny_target, tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    text = config.read_text()
    config.write_text(json.dumps(json.loads(text) | {"peft_type": "IA3"}))
    refused((tmp_path / "adapter", *on), "is no plain LoRA", "peft_type='IA3'")
    config.write_text(text[:50])
    refused((tmp_path / "adapter", *on), "damaged", "copy the adapter again")
    config.write_text(text)
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file(
        {**tensors, "base_model.model.model.extra.weight": torch.zeros(1)},
        weights,
        {"pkt": json.dumps({"base": tiny_target.digest})},
    )
    refused((tmp_path / "adapter", *on), "is no LoRA factor of a part")
    weights.unlink()
    refused((tmp_path / "adapter", *on), "no adapter_model.safetensors in it")


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["--task", "gsm9k"], ["unknown task 'gsm9k'", "did you mean 'gsm8k'?"]),
        (["--task", "gsm8k", "--data", "/nowhere"], ["no folder /nowhere", "test/gsm8k/"]),
        (["--task", "nano/mmlu", "--data", "/nowhere"], ["--data", "embedded", "leave it out"]),
        (["--task", "nano/mmlu", "--style", "tulip"], ["--style: found 'tulip'", "tulu, chat_template, plain"]),
        (["--task", "nano/mmlu", "--task", "nano/mmlu"], ["named twice"]),
        (["--task", "nano/mmlu", "--shots", "3"], ["--shots is 3", "no worked examples for nano/mmlu"]),
        (["--task", "nano/mmlu", "--samples", "3"], ["--samples: nano/mmlu ranks its choices"]),
        (["--task", "nano/gsm8k", "--samples", "3"], ["samples is 3", "temperature"]),
        (["--task", "nano/gsm8k", "--top-p", "0"], ["--top-p is 0"]),
        (["--task", "nano/mmlu", "--too-long", "skip"], ["--too-long", "'skip' is not one of"]),
        (["--task", "nano/mmlu", "--dtype", "int8"], ["dtype 'int8' is not known"]),
        (["--task", "nano/mmlu", "--device", "gpu"], ["device 'gpu' cannot be used here"]),
        (["--task", "nano/mmlu", "--unsafe-no-sandbox"], ["--allow-code-execution"]),
    ],
)
def test_confusions_of_tasks_are_refused(refused, args, parts):
    refused(("nano/target", *args), *parts)


@pytest.fixture
def evaluated(evaluate, tiny_target, tmp_path) -> Path:
    """The folder of an evaluation; before `refused`, which lets nothing be loaded."""
    evaluate(tiny_target.name, "--out", tmp_path / "evaluated", tasks=("gsm8k",))
    return tmp_path / "evaluated"


def test_folders_of_something_else_are_refused(evaluated, refused, tiny_target, tiny_source, benchmarks, finished):
    on = ("--task", "gsm8k", "--data", benchmarks)
    refused((tiny_source.name, *on, "--out", evaluated), "holds the evaluation of", "give another folder")
    refused((tiny_target.name, *on, "--out", finished), "holds something else than an evaluation")
    refused((tiny_target.name, *on, "--out", finished / "recipe.yaml"), "recipe.yaml holds something else")
    for text in (
        "{",
        "[]",
        '{"model": 3, "tasks": []}',
        '{"model": {}, "tasks": []}',
    ):
        (evaluated / "evaluation.json").write_text(text)
        refused((tiny_target.name, *on, "--out", evaluated), "evaluation.json: damaged", "delete it")


def test_another_checkpoint_of_the_same_name_is_scored_anew(evaluate, tiny_target, change, tmp_path, scored):
    export(change, tiny_target, tmp_path / "model")
    first = evaluate(tmp_path / "model", "--out", tmp_path / "out")
    export(change * 2.0, tiny_target, tmp_path / "model", overwrite=True)
    second = evaluate(tmp_path / "model", "--out", tmp_path / "out", tasks=("mmlu",))
    assert scored == ["mmlu", "gsm8k", "mmlu"]
    assert first["model"]["weights"] != second["model"]["weights"]
    kept = json.loads((tmp_path / "out" / "evaluation.json").read_text())["tasks"]
    assert [record["task"] for record in kept] == ["mmlu"]


def test_an_adapter_with_another_scale_is_scored_anew(evaluate, tiny_target, tmp_path, scored):
    low = LowRank(torch.randn(2, 32), torch.randn(32, 2))
    export_adapter(Delta({(1, "q"): low}), tiny_target, tmp_path / "adapter")
    first = evaluate(tmp_path / "adapter", "--out", tmp_path / "out", tasks=("mmlu",))
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": 64}))
    second = evaluate(tmp_path / "adapter", "--out", tmp_path / "out", tasks=("mmlu",))
    assert scored == ["mmlu", "mmlu"]
    assert first["model"]["change"] != second["model"]["change"]


def test_another_dtype_names_once_what_it_replaces(pkt, benchmarks, tiny_target, tmp_path, caplog):
    on = ("--data", benchmarks, "--out", tmp_path / "out", "--device", "cpu")
    pkt("-q", "evaluate", tiny_target.name, "--task", "mmlu", "--task", "gsm8k", *on)
    pkt("evaluate", tiny_target.name, "--task", "mmlu", *on, "--dtype", "bfloat16")
    assert caplog.text.count("is another than when") == 1
    assert "its scores of mmlu, gsm8k are replaced" in caplog.text


def test_models_that_cannot_answer_are_refused(refused, make_lm, tokenizer, tmp_path):
    on = ("--task", "nano/mmlu", "--style", "plain")
    bare = tmp_path / "bare"
    shutil.copytree(make_lm("qwen2").name, bare)  # transformers gives its family an empty tokenizer
    for path in bare.glob("tokenizer*"):
        path.unlink()
    refused((bare, *on), "no tokenizer could be read", "knows no text", "copy its tokenizer files")
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    refused((tmp_path / "bert", *on), "BertForMaskedLM", "expected a causal language model")


def test_a_prompt_that_does_not_fit_is_found_before_loading(refused, tiny_target, tmp_path):
    rows = [{"question": "word " * 5000, "answer": "#### 3"}]
    write_lines(tmp_path / "data" / "test" / "gsm8k" / "test.jsonl", rows)
    refused((tiny_target.name, "--task", "gsm8k", "--data", tmp_path / "data"), "the context holds", "--too-long")


def test_a_limit_above_the_items_says_how_many_there_are(pkt, benchmarks, tiny_target):
    done = pkt("evaluate", tiny_target.name, "--task", "gsm8k", "--data", benchmarks, "--limit", 1000)
    assert "gsm8k: 3 items drawn by seed 0" in done.out
