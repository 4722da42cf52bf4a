"""A model whose layers and unembedding lie on disk gives what it gives in memory."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from test_laten import TUNED, make_task

from pkt.extract.attribution import attribute
from pkt.methods.laten import LatenConfig, laten
from pkt.models.families import KINDS
from pkt.models.lm import LM


class OnDisk(LM):
    """As `device="offload"` on a machine without room: accelerate keeps layers and unembedding on disk."""

    def _placement(self):
        self._offload = tempfile.TemporaryDirectory()
        map_ = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "disk"}
        map_ |= {f"model.layers.{i}": "cpu" if i == 0 else "disk" for i in range(self.dims.layers)}
        return {"device_map": map_, "offload_folder": self._offload.name}


@pytest.fixture
def pair(make_lm):
    def make(role: str) -> tuple[LM, LM]:
        here = make_lm("llama", role)
        return here, OnDisk(here.name, device="cpu")

    return make


def test_attribution(pair):
    here, there = pair("source")
    with there.loaded() as model:
        assert model.lm_head.weight.device.type == model.model.layers[1].mlp.down_proj.weight.device.type == "meta"
    one, two = (attribute(lm, make_task().split("extract"), "plain") for lm in (here, there))
    for kind in KINDS:
        torch.testing.assert_close(one.neurons[kind], two.neurons[kind])
        torch.testing.assert_close(one.layers[kind], two.layers[kind])


def test_laten_and_release(pair):
    (source, far_source), (target, far_target) = pair("source"), pair("target")
    cfg = LatenConfig(**TUNED)
    near, far = (
        laten(*models, make_task(), cfg, torch.Generator().manual_seed(0), style="plain")
        for models in ((source, target), (far_source, far_target))
    )
    for key, change in near.changes.items():
        torch.testing.assert_close(far.changes[key].values, change.values, rtol=1e-3, atol=1e-5)
    with far_target.loaded():
        folder = Path(far_target._offload.name)
    assert not folder.exists()
