"""Fine-tuning: what it minimises, that it continues where it stopped, and what it refuses."""

from __future__ import annotations

import random

import numpy
import pytest
import torch
from test_laten import examples, gen
from torch.nn import functional
from transformers import TrainerCallback

from pkt.align import finetune as module
from pkt.align.finetune import FinetuneConfig, finetune
from pkt.align.full import difference, tune_all
from pkt.errors import ConfigError, TrainingError, UnsupportedModelError
from pkt.flops import counted
from pkt.inject.apply import write_
from pkt.inject.delta import Delta
from pkt.memo_costs import Cost, continued, watched
from pkt.methods import METHODS
from pkt.models.lm import LM
from pkt.stages import Stages
from pkt.tasks.losses import IGNORED, encode_all

SMALL = {"epochs": 2, "batch_size": 4, "micro_batch": 2, "lr": 1e-3}


def config(**options):
    return FinetuneConfig(**{**SMALL, **options})


def encoded(target, count=8):
    return encode_all(examples("zorps", count), "plain", target, loss_on_prompt=False)


def test_first_loss_is_the_mean_over_response_tokens(tiny_target):
    """One step on all examples at once: its loss is that of the untouched model."""
    data = encoded(tiny_target, 4)
    with tiny_target.private("float32") as model:
        history = finetune(model, tiny_target, data, config(epochs=1), gen())
    losses = []
    with tiny_target.loaded() as model, torch.no_grad():
        for e in data:
            assert e.labels[0] == IGNORED
            logits = model(torch.tensor([e.ids])).logits[0, :-1].double()
            labels = torch.tensor(e.labels[1:])
            losses.append(functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")[labels != IGNORED])  # fmt: skip
    assert [h["step"] for h in history] == [1]
    assert history[0]["loss"] == pytest.approx(float(torch.cat(losses).mean()), rel=1e-4)


@pytest.mark.parametrize("micro", [1, 4])
def test_micro_batches_do_not_change_the_steps(tiny_target, micro):
    deltas = [tune_all(tiny_target, encoded(tiny_target), config(micro_batch=m), gen()) for m in (2, micro)]
    for key, change in deltas[0].changes.items():
        torch.testing.assert_close(deltas[1].changes[key].values, change.values, rtol=1e-3, atol=3e-4)


class Power(TrainerCallback):
    """Fails after a step."""

    step = 0

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("stop", [1, 3])
def test_an_interrupted_training_continues_to_the_same_bytes(tiny_target, tmp_path, monkeypatch, stop):
    data = encoded(tiny_target)
    lm = LM(tiny_target.name, device="cpu", memo=tmp_path)
    with counted() as work:
        whole = tune_all(tiny_target, data, config(), gen())
    power = Power()
    plain = module.arguments
    monkeypatch.setattr("pkt.align.trainer.Reports", lambda: power)
    power.step = stop
    with pytest.raises(KeyboardInterrupt):
        tune_all(lm, data, config(save_steps=1), gen())
    kept = list(tmp_path.glob("training-*/checkpoint-*"))
    assert [path.name for path in kept] == ([f"checkpoint-{stop - 1}"] if stop > 1 else [])
    power.step, steps = 0, []
    monkeypatch.setattr(module, "arguments", lambda *a: steps.append(module.last_checkpoint(a[-1])) or plain(*a))
    with counted() as rest, watched() as memo:
        again = tune_all(lm, data, config(save_steps=1), gen())
    assert (memo.continued.seconds > 0) == (stop > 1)
    assert memo.continued.flop + rest.flop == work.flop  # what the interrupted attempt took counts too
    assert (steps[0] is not None) == (stop > 1)
    assert len(again.provenance["history"]) == len(whole.provenance["history"]) == 4
    for key, change in whole.changes.items():
        assert torch.equal(again.changes[key].values, change.values), key
    assert not list(tmp_path.glob("training-*"))


@pytest.mark.parametrize(("earlier", "expected"), [(Cost(5.0, 100.0), 5), (Cost(None, 100.0), None)])
def test_a_stage_counts_what_it_continued(tmp_path, earlier, expected):
    stages = Stages(tmp_path)
    stages.run("align", "key", lambda: continued(earlier) or [], count=True)
    record = stages.records()["align"]
    assert record["flop"] == expected
    assert 100 <= record["seconds"] < 110


def test_a_training_that_failed_leaves_no_checkpoint(tiny_target, tmp_path):
    lm = LM(tiny_target.name, device="cpu", memo=tmp_path)
    options = config(save_steps=1, lr=1e12, micro_batch=4, schedule="constant", warmup=0.0, epochs=9)
    with pytest.raises(
        TrainingError, match=r"step \d+: the loss of examples zorps\d, zorps\d, zorps\d and 1 more is not finite"
    ):
        tune_all(lm, encoded(tiny_target), options, gen())
    assert not list(tmp_path.iterdir())


def test_a_half_written_checkpoint_is_not_used(tmp_path):
    state = '{"global_step": 5}'
    for step, file, text in (
        (5, module.STATE, state),
        (10, "model.safetensors", ""),
        (15, module.STATE, ""),
        (20, module.STATE, state[:9]),
    ):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / file).write_text(text)
    assert module.last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-5")


def test_random_states_are_left_alone(tiny_target):
    before = random.getstate(), torch.get_rng_state(), numpy.random.get_state()[1].copy()
    tune_all(tiny_target, encoded(tiny_target), config(epochs=1), gen())
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert (numpy.random.get_state()[1] == before[2]).all()


@pytest.mark.parametrize(("family", "tied"), [("llama", False), ("llama", True), ("qwen2", True), ("qwen3", False), ("mistral", False), ("gemma2", True), ("gemma3_text", False), ("phi3", False)])  # fmt: skip
def test_the_difference_of_two_models_is_every_parameter(make_lm, family, tied):
    lm = make_lm(family, "target", tie_word_embeddings=tied)
    with lm.private("float32") as model:
        for p in model.parameters():
            p.data += 0.1 * torch.randn(p.shape, generator=gen(1))
        delta = Delta(difference(model, lm))
        wanted = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert len(delta.changes) == len(wanted)
    with lm.private("float32") as model:
        write_(model, delta)
        for name, p in model.named_parameters():
            torch.testing.assert_close(p.detach(), wanted[name], rtol=1e-5, atol=1e-6)
    with lm.loaded() as model:
        from pkt.inject.apply import injected

        ids = torch.tensor([[1, 5, 9, 3]])
        before = model(ids).logits
        with injected(model, delta):
            changed = model(ids).logits
        assert torch.equal(model(ids).logits, before)
    with lm.private("float32") as model:
        write_(model, delta)
        torch.testing.assert_close(changed, model(ids).logits, rtol=1e-3, atol=1e-3)


def test_loss_that_is_not_finite_names_step_and_examples(tiny_target):
    with tiny_target.private("float32") as model:
        model.get_submodule("model.norm").weight.data.fill_(float("nan"))
        with pytest.raises(TrainingError, match=r"step 1: the loss of examples zorps\d, zorps\d is not finite"):
            finetune(model, tiny_target, encoded(tiny_target), config(), gen())


def test_batch_sizes_that_do_not_fit(tiny_target):
    with (
        tiny_target.private("float32") as model,
        pytest.raises(ConfigError, match=r"batch_size is 5, .* no multiple of 2"),
    ):
        finetune(model, tiny_target, encoded(tiny_target), config(batch_size=5), gen())


def test_offloaded_weights_are_not_trained(tiny_target):
    lm = LM(tiny_target.name, device="offload")
    with pytest.raises(UnsupportedModelError, match="offloaded weights cannot be trained"), lm.private():
        pass


def test_a_constant_rate_warms_up_too(tiny_target):
    rates = {}
    for schedule in ("constant", "linear"):
        with tiny_target.private("float32") as model:
            cfg = config(epochs=4, schedule=schedule, warmup=0.5)
            rates[schedule] = [h["lr"] for h in finetune(model, tiny_target, encoded(tiny_target), cfg, gen())]
    assert rates["constant"] == pytest.approx([0, 2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3, 1e-3, 1e-3])
    assert rates["linear"] == pytest.approx([0, 2.5e-4, 5e-4, 7.5e-4, 1e-3, 7.5e-4, 5e-4, 2.5e-4])


def test_a_single_step_trains(tiny_target):
    delta = tune_all(tiny_target, encoded(tiny_target, 4), config(epochs=1), gen())
    assert [h["lr"] for h in delta.provenance["history"]] == [1e-3]
    assert delta.norm() > 0


@pytest.mark.parametrize("name", ["sft", "seqkd", "gkd", "lora", "seeking"])
def test_offloaded_weights_are_refused_before_the_start(tiny_source, tiny_target, name):
    method = METHODS.get(name)
    away = LM(tiny_target.name, device="offload")
    with pytest.raises(ConfigError, match="offloaded weights cannot be trained, .* use --device auto"):
        method.requires(tiny_source, away, method.config())
