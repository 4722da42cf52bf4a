"""The command line on pairs of two families with two tokenizers."""

from __future__ import annotations

import json

import peft
import pytest
import torch
from run_folders import weights
from transformers import AutoModelForCausalLM, AutoTokenizer

from pkt.inject.apply import injected
from pkt.inject.delta import Delta

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
