"""The same results on a GPU, and the same bytes twice."""

from __future__ import annotations

import pytest
import torch

from pkt.extract.attribution import attribute
from pkt.methods import METHODS
from pkt.methods.laten import LatenConfig, laten
from pkt.models.families import KINDS
from pkt.models.lm import LM
from pkt.tasks.sources import task

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

CFG = LatenConfig(init="fan_in", lr=1e-2, steps=4, schedule_steps=4)


@pytest.fixture
def models():
    return {
        device: [LM(f"nano/{role}", device=device, dtype="float32") for role in ("source", "target")]
        for device in ("cpu", "cuda")
    }


def test_attribution_equals_the_cpu(models):
    extract = task("nano/mmlu").split("extract")
    for here, there in zip(models["cpu"], models["cuda"], strict=True):
        one, two = attribute(here, extract, "plain"), attribute(there, extract, "plain")
        for kind in KINDS:
            torch.testing.assert_close(two.neurons[kind], one.neurons[kind], rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("alignment", ["language", "activations", "moments"])
def test_same_seed_same_bytes_and_near_the_cpu(models, tmp_path, alignment):
    cfg = CFG.model_copy(update={"alignment": alignment})
    deltas = [
        laten(*models[d], task("nano/mmlu"), cfg, torch.Generator().manual_seed(0), style="plain")
        for d in ("cuda", "cuda", "cpu")
    ]
    for name, delta in zip("abc", deltas, strict=True):
        delta.save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert deltas[0].norm() == pytest.approx(deltas[2].norm(), rel=0.05)


@pytest.mark.parametrize("name", ["seeking", "pissa", "lora", "sft", "seqkd", "gkd"])
def test_fine_tuning_repeats_and_is_near_the_cpu(models, tmp_path, name):
    method = METHODS.get(name)
    cfg = method.config(epochs=1, lr=1e-3, **({"dropout": 0.0} if "dropout" in method.config.model_fields else {}))
    few = task("nano/mmlu").limited(64, method.splits)
    deltas = [
        method(*models[d], few, cfg, torch.Generator().manual_seed(0), style="plain") for d in ("cuda", "cuda", "cpu")
    ]
    for file, delta in zip("abc", deltas, strict=True):
        delta.save(tmp_path / file)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert deltas[0].norm() == pytest.approx(deltas[2].norm(), rel=0.2)
