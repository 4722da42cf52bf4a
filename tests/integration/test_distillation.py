"""seqkd and gkd: what they train on, the divergence that gkd minimises, determinism, both models unchanged, control arms."""

from __future__ import annotations

import json
import os
import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from pkt.align.full import tune_all
from pkt.certify.arms import SOURCE_ARMS, Setting, transfer
from pkt.checks import check
from pkt.errors import ConfigError, DataError, TrainingError, UnsupportedModelError
from pkt.inject.delta import Delta
from pkt.methods.gkd import GkdConfig, gkd
from pkt.methods.seqkd import SeqkdConfig, seqkd
from pkt.models.lm import LM
from pkt.plan import plan
from pkt.recipe_files import load_recipe
from pkt.run import Run
from pkt.tasks.base import UNLABELLED, Example, Task
from pkt.tasks.formats import FORMATS
from pkt.tasks.losses import encode_all

METHODS = {"seqkd": (seqkd, SeqkdConfig), "gkd": (gkd, GkdConfig)}
FORM = replace(FORMATS["gsm8k"], max_new_tokens=6)
SMALL = {"epochs": 1, "batch_size": 4, "micro_batch": 2, "lr": 1e-3}


def examples(what: str, count: int, answer: str = "Answer: So the answer is {}.") -> list[Example]:
    return [
        Example(f"{what}{i}", f"How much are {i} {what}?", answer.format(i * 7), str(i * 7), f"{what}{i}")
        for i in range(1, count + 1)
    ]


def make_task(train: list[Example] | None = None) -> Task:
    splits = {
        "train": examples("glims", 4) if train is None else train,
        "test": examples("blicks", 2),
        UNLABELLED: examples("zorps", 3, "Answer:"),
    }
    return Task("tiny", FORM, lambda name: splits[name], "test")


def run(name: str, source: LM, target: LM, task: Task | None = None, seed: int = 0, **options) -> Delta:
    function, config = METHODS[name]
    gen = torch.Generator().manual_seed(seed)
    return function(source, target, task or make_task(), config(**SMALL | options), gen, style="plain")


def same(one: Delta, two: Delta) -> bool:
    return one.changes.keys() == two.changes.keys() and all(
        torch.equal(c.entries(), two.changes[key].entries()) for key, c in one.changes.items()
    )


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("families", [("llama", "llama"), ("mistral", "qwen3")])
def test_every_tensor_changes_and_both_models_are_unchanged(make_lm, name, families):
    source, target = make_lm(families[0], "source"), make_lm(families[1], "target")
    with target.loaded() as model, source.loaded() as large:
        before = {k: v.clone() for m in (model, large) for k, v in m.state_dict(prefix=str(id(m))).items()}
        configs = [json.dumps([m.config.to_dict(), m.generation_config.to_dict()], default=str) for m in (model, large)]
        tokens = [target.tokenizer.eos_token, target.tokenizer.pad_token, target.tokenizer.padding_side]
        delta = run(name, source, target, unlabelled=2)
        after = {k: v for m in (model, large) for k, v in m.state_dict(prefix=str(id(m))).items()}
        assert before.keys() == after.keys()
        assert all(torch.equal(v, before[k]) for k, v in after.items())
        assert all(p.grad is None and not p.requires_grad for m in (model, large) for p in m.parameters())
        assert not any(module.training for m in (model, large) for module in m.modules())
        assert configs == [
            json.dumps([m.config.to_dict(), m.generation_config.to_dict()], default=str) for m in (model, large)
        ]
        assert tokens == [target.tokenizer.eos_token, target.tokenizer.pad_token, target.tokenizer.padding_side]
    assert {name for name, _ in delta.tensors(target)} == set(target.checkpoint.headers)
    assert delta.provenance["trained_parameters"] == target.parameters()
    assert delta.provenance["steps"] == len(delta.provenance["history"]) == 2  # 4 + 2 prompts, 4 in a step
    assert delta.provenance["labels"] == {"seqkd": 0, "gkd": 4}[name]
    assert delta.provenance["answers"] == {"seqkd": 6, "gkd": 2}[name]
    assert delta.provenance["empty"] == 0


@pytest.mark.parametrize("name", METHODS)
def test_same_seed_same_delta_and_nobody_elses_draws(tiny_source, tiny_target, name):
    states = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state()
    variables = dict(os.environ)
    one, two, other = (run(name, tiny_source, tiny_target, seed=seed, epochs=2) for seed in (0, 0, 1))
    assert same(one, two)
    assert one.provenance == two.provenance
    assert not same(one, other)
    assert random.getstate() == states[0]
    assert numpy.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert dict(os.environ) == variables


# seqkd


def test_seqkd_is_fine_tuning_on_what_the_source_says(tiny_source, tiny_target):
    task = make_task()
    asked = [*task.split("train"), *task.unlabelled(2)]
    with tiny_source.loaded() as model:
        said = []
        for e in asked:
            ids = tiny_source.tokenizer(f"{e.prompt}\nAnswer:", return_tensors="pt")["input_ids"]
            out = model.generate(ids, do_sample=False, max_new_tokens=6)[0, ids.shape[1] :]
            text = tiny_source.tokenizer.decode(out, skip_special_tokens=True)
            said.append(replace(e, response="Answer:" + text))
    encoded = encode_all(said, "plain", tiny_target, loss_on_prompt=False)
    expected = tune_all(tiny_target, encoded, SeqkdConfig(**SMALL), torch.Generator().manual_seed(0))
    assert same(run("seqkd", tiny_source, tiny_target, unlabelled=2), expected)


def test_seqkd_reads_no_label(tiny_source, tiny_target):
    wrong = make_task([replace(e, response="Answer: 0", answer="0") for e in examples("glims", 4)])
    assert same(run("seqkd", tiny_source, tiny_target), run("seqkd", tiny_source, tiny_target, wrong))


@pytest.fixture
def foreign(make_lm, tmp_path) -> LM:
    """A source with another tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["</s>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        ["How much are"] * 9, trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet, vocab_size=300)
    )
    with make_lm("llama", "source").loaded() as model:
        model.save_pretrained(tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(tmp_path)
    return LM(tmp_path, device="cpu")


def test_another_tokenizer_is_fine_for_seqkd_and_refused_by_gkd(foreign, tiny_target):
    assert run("seqkd", foreign, tiny_target).provenance["answers"] > 0
    with pytest.raises(UnsupportedModelError, match="gkd needs equal token maps"):
        run("gkd", foreign, tiny_target)


def test_no_answer_at_all(tiny_source, tiny_target, monkeypatch):
    monkeypatch.setattr(LM, "generate", lambda self, texts, how: [""] * len(texts))
    with pytest.raises(DataError, match="all 4 answers to tiny are empty"):
        run("seqkd", tiny_source, tiny_target)


# gkd


def divergence(source_V: torch.Tensor, target_V: torch.Tensor, beta: float) -> float:
    """The generalised Jensen-Shannon divergence of arXiv:2306.13649, in float64, of one position's logits."""
    p, q = source_V.double().softmax(-1), target_V.double().softmax(-1)
    if beta in (0, 1):
        a, b = (p, q) if beta == 0 else (q, p)
        return float((a * (a / b).log()).sum())
    m = beta * p + (1 - beta) * q
    return float(beta * (p * (p / m).log()).sum() + (1 - beta) * (q * (q / m).log()).sum())


@pytest.fixture
def written(monkeypatch) -> list[dict]:
    """Every micro-batch that the target has written."""
    from pkt.align import distillation

    kept, write = [], distillation.Distillation._written

    def spy(self, batch, device):
        kept.append(write(self, batch, device))
        return dict(kept[-1])

    monkeypatch.setattr(distillation.Distillation, "_written", spy)
    return kept


@torch.no_grad()
def expected_loss(source: LM, target: LM, texts: list[tuple[list[int], int]], beta: float, num: int) -> float:
    """Mean over scored tokens, one text at a time. A text is token ids and the number of those that are no response."""
    with source.loaded() as large, target.loaded() as model:
        values = []
        for ids, start in texts:
            s, t = (m(torch.tensor([ids])).logits[0, start - 1 : -1, :num] for m in (large, model))
            values += [divergence(a, b, beta) for a, b in zip(s, t, strict=True)]
    return sum(values) / len(values)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_loss_on_policy_is_the_mean_over_the_tokens_that_were_scored(tiny_source, tiny_target, written, beta):
    """Labels of other lengths than what is sampled: dividing by their number, as trl does, gives another value."""
    task = make_task(examples("glims", 4, "Answer: So the answer is {}" + ", and so on" * 5))
    delta = run("gkd", tiny_source, tiny_target, task, lmbda=1.0, beta=beta)
    assert len(written) == 2
    starts = [len(tiny_target.tokenizer(f"{e.prompt}\n")["input_ids"]) for e in task.split("train")]
    prefix = len(tiny_target.tokenizer("Answer:", add_special_tokens=False)["input_ids"])
    texts = []
    for batch in written:
        for ids, mask, labels, i in zip(
            batch["input_ids"], batch["attention_mask"], batch["labels"], batch["prompts"], strict=True
        ):
            row = ids[mask == 1].tolist()
            assert (
                row[: starts[i] + prefix]
                == tiny_target.tokenizer(f"{task.split('train')[i].prompt}\nAnswer:")["input_ids"]
            )
            assert labels[mask == 1].tolist() == [-100] * starts[i] + row[starts[i] :]
            assert (labels[mask == 0] == -100).all()
            assert len(row) <= starts[i] + prefix + 6
            texts.append((row, starts[i]))
    expected = expected_loss(tiny_source, tiny_target, texts, beta, 10**6)
    assert delta.provenance["history"][0]["loss"] == pytest.approx(expected, rel=1e-4)
    assert delta.provenance["labels"] == 0


def test_the_loss_off_policy_is_that_of_the_labelled_responses(tiny_source, tiny_target, written):
    task = make_task()
    delta = run("gkd", tiny_source, tiny_target, task, lmbda=0.0, beta=0.5)
    encoded = encode_all(task.split("train"), "plain", tiny_target, loss_on_prompt=False)
    expected = expected_loss(tiny_source, tiny_target, [(e.ids, len(e.prompt)) for e in encoded], 0.5, 10**6)
    assert delta.provenance["history"][0]["loss"] == pytest.approx(expected, rel=1e-4)
    assert delta.provenance["labels"] == 4
    assert written == []


def test_the_share_of_steps_on_policy(tiny_source, tiny_target, written):
    run("gkd", tiny_source, tiny_target, lmbda=0.5, epochs=24, batch_size=4, micro_batch=4)
    assert 6 <= len(written) <= 18


@pytest.mark.parametrize("lmbda", [0.0, 1.0])
def test_training_that_diverges_says_so_before_a_token_is_drawn(tiny_source, tiny_target, lmbda):
    """A certificate's search takes such a learning rate for the worst, and goes on."""
    with pytest.raises(TrainingError, match=r"step \d+: .* not finite; lower the learning rate"):
        run("gkd", tiny_source, tiny_target, lmbda=lmbda, lr=1e4, epochs=6)


def test_at_lmbda_1_no_label_is_read(tiny_source, tiny_target):
    wrong = make_task([replace(e, response="Answer: 0", answer="0") for e in examples("glims", 4)])
    for lmbda in (1.0, 0.0):
        one, two = (run("gkd", tiny_source, tiny_target, task, lmbda=lmbda, unlabelled=1) for task in (None, wrong))
        assert same(one, two) == (lmbda == 1.0)


def test_the_target_samples_by_the_recipe_and_not_by_settings_of_its_own(tiny_source, tiny_target, tmp_path):
    with LM(tiny_target.name, device="cpu").private() as model:
        model.generation_config.update(do_sample=True, min_p=1.0)
        model.save_pretrained(tmp_path)
    tiny_target.tokenizer.save_pretrained(tmp_path)
    own = LM(tmp_path, device="cpu")
    with own.loaded() as model:
        assert model.generation_config.min_p == 1.0
    assert same(*(run("gkd", tiny_source, target, lmbda=1.0) for target in (tiny_target, own)))


def padded(lm: LM, folder: Path, more: int) -> LM:
    """The same model with random rows for tokens that the tokenizer does not have."""
    with LM(lm.name, device="cpu").private() as model, torch.random.fork_rng():
        torch.manual_seed(0)
        size = len(lm.tokenizer)
        for module in (model.model.embed_tokens, model.lm_head):
            weight = module.weight.data
            module.weight.data = torch.cat([weight, 3 * torch.randn(more, weight.shape[1])])
        model.config.vocab_size = size + more
        model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return LM(folder, device="cpu")


@pytest.mark.parametrize("lmbda", [0.0, 1.0])
def test_padding_of_a_vocabulary_is_not_learnt(tiny_source, tiny_target, tmp_path, lmbda):
    """What the target samples depends on how many entries are drawn from, so with samples values are not compared."""
    plain = run("gkd", tiny_source, tiny_target, lmbda=lmbda)
    assert plain.norm() > 0
    wide = padded(tiny_source, tmp_path / "source", 64)
    assert same(plain, run("gkd", wide, tiny_target, lmbda=lmbda))
    target = padded(tiny_target, tmp_path / "target", 24)
    for source in (tiny_source, wide):
        found = run("gkd", source, target, lmbda=lmbda)
        size = len(tiny_target.tokenizer)
        for key, change in plain.changes.items():
            entries = found.changes[key].entries()
            if key[1] in ("embed", "unembed"):
                assert not entries[size:].any()
                entries = entries[:size]
            if lmbda == 0:
                torch.testing.assert_close(entries, change.entries(), rtol=0, atol=1e-4)


def test_an_interrupted_training_continues_to_the_same_bytes(tiny_source, tiny_target, tmp_path, monkeypatch):
    from pkt.align.distillation import Distillation

    target = LM(tiny_target.name, device="cpu", memo=tmp_path)
    options = {"epochs": 5, "save_steps": 2, "lmbda": 0.5, "unlabelled": 1, "micro_batch": 4}
    whole = run("gkd", tiny_source, target, **options)
    step = Distillation.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == 5:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(Distillation, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("gkd", tiny_source, target, **options)
    assert [path.name for path in tmp_path.glob("training-*/checkpoint-*")] == ["checkpoint-4"]
    done = []
    monkeypatch.setattr(Distillation, "training_step", lambda *args, **kwargs: done.append(1) or step(*args, **kwargs))
    assert same(run("gkd", tiny_source, target, **options), whole)
    assert len(done) == 6
    assert not list(tmp_path.glob("training-*"))


def test_the_target_learns_what_the_source_says(tiny_source, tiny_target):
    history = run("gkd", tiny_source, tiny_target, lmbda=0.0, epochs=30, lr=1e-2).provenance["history"]
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]


def test_without_trl_one_line_says_what_to_install(tiny_source, tiny_target, monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(ConfigError, match=r"^method gkd needs trl, .*run pip install 'pkt\[distill\]'$"):
        gkd.requires(tiny_source, tiny_target, GkdConfig())


def test_a_loss_on_prompts_is_refused(tiny_source, tiny_target):
    with pytest.raises(ConfigError, match="gkd scores completions alone; set it to false"):
        run("gkd", tiny_source, tiny_target, loss_on_prompt=True)


@pytest.mark.parametrize("name", ["seqkd", "gkd"])
def test_answers_longer_than_the_context_are_refused_before_the_start(tiny_source, tiny_target, name):
    made, config = METHODS[name]
    cfg = config(max_new_tokens=tiny_source.dims.context)
    with pytest.raises(ConfigError, match=r"method.max_new_tokens is \d+, but the context of .* lower it"):
        made.requires(tiny_source, tiny_target, cfg)


def test_samples_that_do_not_fit_after_a_prompt_are_refused(tiny_source, tiny_target):
    with pytest.raises(
        DataError, match=r"a prompt has \d+ tokens and its answer up to \d+ more, but the context holds"
    ):
        run("gkd", tiny_source, tiny_target, lmbda=1.0, max_new_tokens=tiny_target.dims.context - 1)


@pytest.mark.parametrize("lmbda", [0.0, 0.5])
def test_texts_longer_than_the_sources_context_are_refused(make_lm, tiny_target, lmbda):
    short = make_lm("llama", "source", max_position_embeddings=16)
    with pytest.raises(DataError, match=r"example glims1 has \d+ tokens, but the context of .* holds 16; shorten or"):
        run("gkd", short, tiny_target, lmbda=lmbda, max_new_tokens=1)


# control arms


@pytest.mark.parametrize("name", METHODS)
def test_every_source_arm_runs_and_differs(tiny_source, tiny_target, name):
    method, config = METHODS[name]
    setting = Setting(method, tiny_source, tiny_target, make_task(), "plain")
    cfg = config(**SMALL, unlabelled=3)
    found = {arm: transfer(arm, setting, cfg, 0) for arm in ("real_source", *SOURCE_ARMS)}
    arms = list(found)
    for i, arm in enumerate(arms):
        assert all(not same(found[arm], found[other]) for other in arms[:i]), arm
    assert found["no_source"].provenance["labels"] == 4
    assert found["no_source"].provenance["steps"] == 1  # 4 labelled examples, 4 in a step
    assert found["real_source"].provenance["steps"] == 2


def test_without_a_source_both_are_fine_tuning_on_labels(tiny_target):
    task = make_task()
    encoded = encode_all(task.split("train"), "plain", tiny_target, loss_on_prompt=False)
    for method, config in METHODS.values():
        cfg = config(**SMALL, unlabelled=3)
        expected = tune_all(tiny_target, encoded, cfg, torch.Generator().manual_seed(0))
        got = method.no_source(tiny_target, tiny_target, task, cfg, torch.Generator().manual_seed(0), style="plain")
        assert same(got, expected)


def test_a_target_has_nothing_to_learn_from_itself(tiny_target):
    delta = run("gkd", tiny_target, tiny_target, lmbda=0.5)
    assert delta.provenance["history"][0]["loss"] == pytest.approx(0, abs=1e-6)


# recipes


@pytest.mark.parametrize("name", ["nano_seqkd", "nano_gkd", "nano_seqkd_unlabelled", "nano_gkd_unlabelled"])
def test_shipped_recipes_are_checked_and_planned(name, tmp_path):
    made = Run(load_recipe(name), tmp_path)
    check(made)
    notes = " ".join(plan(made).notes)
    assert ("in memory together" in notes) == ("gkd" in name)
    assert (made.options.unlabelled == 600) == ("unlabelled" in name)


def test_nothing_is_prepared_where_no_answer_is_asked_for(tiny_source, tiny_target):
    task = make_task()
    for name, options, asks in (
        ("gkd", {}, False), ("gkd", {"unlabelled": 1}, True), ("gkd", {"unlabelled": 1, "lmbda": 1.0}, False), ("seqkd", {}, True),
    ):  # fmt: skip
        method, config = METHODS[name]
        assert (method.preparation_key(task, config(**options)) is not None) == asks
    keys = [gkd.preparation_key(task, GkdConfig(unlabelled=1, **more)) for more in ({}, {"beta": 0.2, "lr": 1.0}, {"max_new_tokens": 3})]  # fmt: skip
    assert keys[0] == keys[1] != keys[2]
    later = replace(task, format=replace(FORM, version=FORM.version + 1))
    for name, options in (("gkd", {"unlabelled": 1}), ("seqkd", {})):
        method, config = METHODS[name]
        assert method.preparation_key(task, config(**options)) != method.preparation_key(later, config(**options))


@pytest.mark.parametrize(("name", "decides"), [("seqkd", True), ("gkd", True), ("sft", False)])
def test_a_delta_is_of_one_version_of_its_format(tmp_path, name, decides):
    """Where answers end is the format's: they are written anew, and so is what was trained on them."""
    run = Run(load_recipe(f"nano_{name}"), tmp_path)
    before = run.inputs()
    run.__dict__["task"] = replace(run.task, format=replace(run.task.format, version=9))
    assert (run.inputs() != before) == decides
