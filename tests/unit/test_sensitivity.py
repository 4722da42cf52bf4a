"""Streamed sensitivities against plain autograd, and the model afterwards."""

from __future__ import annotations

import pytest
import torch

from pkt.errors import UnsupportedModelError
from pkt.extract.sensitivity import each_sensitivity
from pkt.tasks.losses import encode_all, example_losses
from pkt.tasks.sources import task


@pytest.fixture
def examples():
    return task("nano/mmlu").split("extract")[:3]


def gathered(lm, examples, names=None) -> dict[tuple[int, str], torch.Tensor]:
    found = {}

    def keep(number, name, s):
        assert (number, name) not in found
        assert s.dtype == torch.float32
        found[number, name] = s

    each_sensitivity(lm, examples, "plain", keep, names)
    return found


@pytest.mark.parametrize(("family", "more"), [("llama", {}), ("qwen2", {}), ("llama", {"tie_word_embeddings": True})])
def test_equals_autograd(make_lm, examples, family, more):
    lm = make_lm(family, "source", **more)
    found = gathered(lm, examples)
    with lm.loaded() as model:
        names = dict(model.named_parameters())
        for number, example in enumerate(encode_all(examples, "plain", lm, loss_on_prompt=False)):
            model.requires_grad_(True)
            example_losses(model, lm, [example]).sum().backward()
            for name, p in names.items():
                torch.testing.assert_close(found[number, name], (p * p.grad).abs().detach())
            model.zero_grad(set_to_none=True)
        model.requires_grad_(False)
    assert len(found) == len(examples) * len(names)
    assert found[0, "model.layers.0.mlp.up_proj.weight"].sum() > 0


def test_names_restrict(make_lm, examples):
    lm = make_lm("llama", "source")
    name = "model.layers.1.mlp.gate_proj.weight"
    some, every = gathered(lm, examples, {name}), gathered(lm, examples)
    assert set(some) == {(e, name) for e in range(3)}
    assert all(torch.equal(s, every[key]) for key, s in some.items())


def test_low_precision_has_float32_products(make_lm, examples):
    lm = make_lm("llama", "source")
    low = type(lm)(lm.name, device="cpu", dtype="bfloat16")
    key = (0, "model.layers.2.mlp.down_proj.weight")
    wide, narrow = gathered(lm, examples[:1])[key], gathered(low, examples[:1])[key]
    assert torch.corrcoef(torch.stack([wide.flatten(), narrow.flatten()]))[0, 1] > 0.95
    assert not torch.equal(narrow, narrow.bfloat16().float())


@pytest.mark.parametrize("fails", [False, True])
def test_model_is_left_as_it_was(make_lm, examples, fails):
    lm = make_lm("llama", "source")

    def consume(number, name, s):
        if fails and "layers.1" in name:
            raise UnsupportedModelError("stop")

    with lm.loaded() as model:
        before = {name: p.clone() for name, p in model.named_parameters()}
        if fails:
            with pytest.raises(UnsupportedModelError, match="stop"):
                each_sensitivity(lm, examples, "plain", consume)
        else:
            each_sensitivity(lm, examples, "plain", consume)
        for name, p in model.named_parameters():
            assert torch.equal(p, before[name])
            assert not p.requires_grad
            assert p.grad is None
            assert not p._post_accumulate_grad_hooks


def test_only_one_gradient_at_a_time(make_lm, examples):
    lm = make_lm("llama", "source")
    with lm.loaded() as model:
        held = []
        each_sensitivity(
            lm, examples[:1], "plain", lambda *_: held.append(sum(p.grad is not None for p in model.parameters()))
        )
    assert set(held) == {0}
