"""LaTen and the command line on pairs of two families with two tokenizers."""

from __future__ import annotations

import json
from dataclasses import replace

import peft
import pytest
import torch
from run_folders import weights
from test_families import logits
from test_laten import gen, make_task
from transformers import AutoModelForCausalLM, AutoTokenizer

from pkt.errors import UnsupportedModelError
from pkt.evaluation.harness import score
from pkt.inject.apply import injected
from pkt.inject.delta import Delta
from pkt.inject.export import export
from pkt.methods.laten import LatenConfig, laten
from pkt.tasks.base import Task
from pkt.tasks.prompts import encode_prompt

CHAT = "chat_template"


def task_of(data, style=CHAT):
    return {"name": "gsm8k", "data": str(data), "prompt_style": style}


def test_llama_to_qwen_on_a_nano_task(pkt, recipe, make_lm, tmp_path):
    """The embedded Llama and its facts, and a small Qwen2 that has other tokens."""
    target = make_lm("qwen2", "target", speaks="chatml")
    path = recipe(
        source="nano/source",
        target=target.name,
        task={"name": "nano/mmlu", "prompt_style": "plain"},
        method={"name": "laten", "init": "fan_in", "lr": 1e-2, "norm_weight": 1.0, "steps": 3, "schedule_steps": 3},
        evaluate={"limit": 2},
    )
    done = pkt("run", path, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    history = Delta.load(tmp_path / "out" / "delta.safetensors").provenance["history"]
    assert history[-1]["cross_entropy"] < history[0]["cross_entropy"]
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "model")
    assert made.config.model_type == "qwen2"
    assert tokenizer.get_vocab() == target.tokenizer.get_vocab()
    ids = torch.tensor([tokenizer("Which job does Tom have?")["input_ids"]])
    with target.loaded() as model, torch.no_grad():
        before = model(ids).logits
        with injected(model, Delta.load(tmp_path / "out" / "delta.safetensors")):
            torch.testing.assert_close(made(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)
    assert (made(ids).logits - before).abs().max() > 1e-3
    arms = {json.loads(line)["arm"] for line in (tmp_path / "out" / "scores.jsonl").read_text().splitlines()}
    assert arms == {"source", "target", "result"}
    pkt("run", path, "--out", tmp_path / "again")
    assert weights(tmp_path / "again") == weights(tmp_path / "out")


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (("gemma2", "gemma"), ("phi3", "chatml")),
        (("phi3", "brackets"), ("gemma3_text", "gemma")),
    ],
    ids=lambda model: model[0],
)
def test_plan_verify_and_run_in_their_chat_templates(pkt, recipe, make_lm, shared_data, tmp_path, source, target):
    models = {"source": make_lm(source[0], "source", speaks=source[1]).name, "target": make_lm(target[0], "target", speaks=target[1]).name}  # fmt: skip
    path = recipe(**models, task=task_of(shared_data))
    plan = pkt("plan", path)
    assert plan.code == 0, plan.err
    assert source[0] in plan.out
    assert "5 rows of 56" in plan.out
    verified = pkt("locate", path, "--out", tmp_path / "out", "--verify")
    assert verified.code == 0, verified.err
    done = pkt("run", path, "--set", "export.adapter=always", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    ids = torch.arange(3, 13)[None]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    base = AutoModelForCausalLM.from_pretrained(models["target"])
    before = base(ids).logits
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "out" / "adapter").eval()
    torch.testing.assert_close(adapted(ids).logits, merged(ids).logits, rtol=1e-3, atol=1e-3)
    assert (merged(ids).logits - before).abs().max() > 1e-3


@pytest.mark.parametrize(("name", "family"), [("seqkd", "phi3"), ("sft", "gemma2"), ("pissa", "phi3"), ("seeking", "gemma3_text")])  # fmt: skip
def test_methods_that_fine_tune(pkt, recipe, make_lm, shared_data, tmp_path, name, family):
    target = make_lm(family, "target", speaks="gemma")
    options = {"name": name, "epochs": 1, "batch_size": 2, "lr": 1e-2}
    if name in ("pissa", "seeking"):
        options |= {"rank": 4, "embeddings": False}
    if name == "seeking":
        options |= {"parts": ["gate", "up", "down"]}
    if name == "seqkd":
        options |= {"max_new_tokens": 4}
    path = recipe(source=make_lm("llama", "source", speaks="llama3").name, target=target.name, task=task_of(shared_data), method=options)  # fmt: skip
    done = pkt("run", path, "--set", "evaluate.arms=[result]", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    card = (tmp_path / "out" / "model" / "README.md").read_text()
    assert ("from" in card.partition("# ")[2].splitlines()[0]) == (name in ("seqkd", "seeking"))
    assert f" changed by {name}" in card
    ids = torch.arange(3, 13)[None]
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    with target.loaded() as model, torch.no_grad():
        before = model(ids).logits
        with injected(model, Delta.load(tmp_path / "out" / "delta.safetensors")):
            torch.testing.assert_close(made(ids).logits, model(ids).logits, rtol=1e-3, atol=1e-3)
    assert (made(ids).logits - before).abs().max() > 1e-3


def test_gkd_refuses_other_tokens(pkt, recipe, make_lm, shared_data, tmp_path):
    models = {"source": make_lm("llama", "source", speaks="llama3").name, "target": make_lm("qwen2", "target", speaks="chatml").name}  # fmt: skip
    done = pkt("run", recipe(**models, task=task_of(shared_data), method={"name": "gkd"}), "--out", tmp_path / "out")
    assert done.code == 2
    assert "gkd needs equal token maps" in done.err
    assert len(done.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "pair",
    [
        (("llama", "llama3"), ("qwen2", "chatml")),
        (("gemma2", "gemma"), ("llama", "llama3")),
        (("llama", "brackets"), ("phi3", "chatml")),
        (("phi3", "chatml"), ("gemma3_text", "gemma")),
    ],
    ids=lambda pair: pair[0],
)
def test_laten_works_across_tokenizers_and_families(make_lm, tmp_path, pair):
    (source, words), (target, others) = pair
    source, target = make_lm(source, "source", speaks=words), make_lm(target, "target", speaks=others)
    assert source.tokenizer.get_vocab() != target.tokenizer.get_vocab()
    cfg = LatenConfig(init="fan_in", lr=1e-2, norm_weight=1.0, steps=4, schedule_steps=4, transfer_rate=0.3)
    delta = laten(source, target, make_task(), cfg, gen(), style="chat_template")
    losses = [h["cross_entropy"] for h in delta.provenance["history"]]
    assert losses[-1] < losses[0]
    with target.loaded() as model, injected(model, delta):
        hooked = logits(model)
    export(delta, target, tmp_path / "out")
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), hooked, rtol=1e-4, atol=2e-4
    )
    with pytest.raises(UnsupportedModelError, match="alignment on activations needs equal token maps"):
        laten(
            source,
            target,
            make_task(),
            cfg.model_copy(update={"alignment": "activations"}),
            gen(),
            style="chat_template",
        )


@pytest.mark.parametrize(("words", "style"), [("llama3", "chat_template"), ("gemma", "plain"), ("chatml", "tulu"), ("brackets", "chat_template")])  # fmt: skip
def test_what_is_scored_has_one_beginning_of_sequence(make_lm, words, style):
    """By the harness, which tokenizes for itself."""
    lm = make_lm("llama", "target", speaks=words)
    task, read = make_task(), []
    short = Task("tiny", replace(task.format, max_new_tokens=2), task.split, "test")
    with lm.loaded() as model:
        handle = model.model.register_forward_pre_hook(
            lambda _m, _a, kwargs: read.append(kwargs["input_ids"]), with_kwargs=True
        )
        score(model, lm.tokenizer, short, style=style)
        handle.remove()
    rows = [[i for i in row if i != lm.tokenizer.pad_token_id] for row in read[0].tolist()]
    want = [encode_prompt(e, style, lm.tokenizer, prefix=task.format.prefix) for e in task.split("test")]
    assert sorted(rows) == sorted(want)
    assert all(row.count(lm.tokenizer.bos_token_id) == (words != "chatml") for row in rows)
