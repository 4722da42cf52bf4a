"""Phi-3, whose parts share matrices, against the Mistral that has the same weights apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from test_direct import transfer as direct_transfer
from test_laten import make_task
from test_laten import transfer as laten_transfer
from test_lora_methods import make_task as make_train_task
from test_lora_methods import run

from pkt.align import lora as lora_module
from pkt.align.moments import goal_maker
from pkt.errors import ConfigError, ShapeError, UnsupportedModelError
from pkt.extract.attribution import attribute
from pkt.extract.blocks import find_blocks
from pkt.extract.location import locate
from pkt.extract.locators import LOCATORS
from pkt.extract.scores import locate as scores_by
from pkt.models.controls import RandomSource, ShuffledSource
from pkt.models.families import KINDS, LINEAR, PARTS
from pkt.models.lm import LM
from pkt.similarity.grams import MODULES, Grams
from pkt.similarity.positions import draw_positions

IDS = torch.arange(3, 23).view(2, 10)


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.fixture(scope="module")
def twins(make_lm, tmp_path_factory):
    """A tiny Phi-3 and the Mistral with the same weights, each part in a matrix of its own: role -> (phi3, mistral)."""

    def make(role):
        phi3, folder = make_lm("phi3", role), tmp_path_factory.mktemp(f"twin-{role}")
        sizes, width = tiny_models.SOURCE if role == "source" else tiny_models.TARGET, phi3.dims.head_dim
        q, kv, ffn = (
            sizes["num_attention_heads"] * width,
            sizes["num_key_value_heads"] * width,
            sizes["intermediate_size"],
        )
        tensors = {}
        for name, w in load_file(Path(phi3.name) / "model.safetensors").items():
            if "qkv_proj" in name:
                pieces = zip(("q_proj", "k_proj", "v_proj"), w.split([q, kv, kv]), strict=True)
                tensors |= {name.replace("qkv_proj", piece): t.clone() for piece, t in pieces}
            elif "gate_up_proj" in name:
                pieces = zip(("gate_proj", "up_proj"), w.split([ffn, ffn]), strict=True)
                tensors |= {name.replace("gate_up_proj", piece): t.clone() for piece, t in pieces}
            else:
                tensors[name] = w
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        config = json.loads((Path(phi3.name) / "config.json").read_text())
        config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
        for field in ("resid_pdrop", "embd_pdrop", "original_max_position_embeddings"):
            config.pop(field)
        config["rope_parameters"].pop("partial_rotary_factor")
        (folder / "config.json").write_text(json.dumps(config))
        phi3.tokenizer.save_pretrained(folder)
        return phi3, LM(folder, device="cpu")

    return {role: make(role) for role in ("source", "target")}


def test_the_twins_say_the_same(twins):
    for phi3, other in twins.values():
        with phi3.loaded() as one, other.loaded() as two:
            torch.testing.assert_close(logits(one), logits(two), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", LOCATORS.names())
def test_every_locator_scores_fused_parts_as_parts_of_their_own(twins, name):
    locator, task = LOCATORS.get(name), make_task()
    for phi3, other in twins.values():
        one, two = (scores_by(locator, lm, task.split("extract"), "plain", per_example=True) for lm in (phi3, other))
        for kind in KINDS:
            largest = float(two.neurons[kind].abs().max())
            torch.testing.assert_close(one.neurons[kind], two.neurons[kind], rtol=1e-3, atol=1e-4 * largest)
            torch.testing.assert_close(one.layers[kind], two.layers[kind], rtol=1e-3, atol=1e-4 * largest)


def test_slices_noise_and_shuffles_are_those_of_the_part(twins):
    phi3, other = twins["source"]
    lines = {0: [3, 1, 15], 2: [0, 9, 9]}
    for part in PARTS:
        for make in (lambda lm: lm, lambda lm: RandomSource(lm, 4), lambda lm: ShuffledSource(lm, 4)):
            one, two = (make(lm).slices(part, lines) for lm in (phi3, other))
            assert all(torch.equal(one[layer], two[layer]) for layer in lines)
    for part in LINEAR:
        assert torch.equal(phi3.part(1, part), other.part(1, part))
        assert phi3.shape(1, part) == other.shape(1, part)
    with pytest.raises(ShapeError, match=r"v in .*qkv_proj.weight has 16 lines, asked for 16"):
        phi3.slices("v", {0: [16]})


@pytest.mark.parametrize("alignment", ["language", "activations", "moments"])
def test_laten_and_direct_give_the_same_deltas(twins, alignment):
    """Every objective of LaTen; phi3 as source and as target."""
    (large, large_twin), (small, small_twin) = twins["source"], twins["target"]
    one, two = (
        laten_transfer(s, t, transfer_rate=0.3, alignment=alignment)
        for s, t in ((large, small), (large_twin, small_twin))
    )
    assert one.changes.keys() == two.changes.keys()
    for key, change in one.changes.items():
        assert torch.equal(change.index, two.changes[key].index)
        torch.testing.assert_close(change.values, two.changes[key].values, rtol=1e-2, atol=1e-4)
    if alignment == "moments":
        for mode in ("replace", "add"):
            one, two = (direct_transfer(s, t, mode=mode) for s, t in ((large, small), (large_twin, small_twin)))
            assert one.norm() > 0
            for key, change in one.changes.items():
                assert torch.equal(change.index, two.changes[key].index)
                assert torch.equal(change.values, two.changes[key].values)
        scores = [(attribute(s, make_task().split("extract"), "plain"), attribute(t, make_task().split("extract"), "plain")) for s, t in ((large, small),)]  # fmt: skip
        at = locate(large, small, scores[0], {"ffn": 6, "attention": 6})
        ours, theirs = goal_maker(large, small)(at), goal_maker(large_twin, small_twin)(at)
        for key, goal in ours.items():
            torch.testing.assert_close(goal.unit, theirs[key].unit)
            torch.testing.assert_close(goal.moments, theirs[key].moments)


def test_blocks_of_a_source_that_shares_matrices(twins, make_lm):
    (phi3, other), target, task = twins["source"], make_lm("llama", "target"), make_train_task()
    keys = lora_module.adapted(target, lora_module.LoraConfig(embeddings=False))
    one, two = (find_blocks(lm, target, keys, task.split("extract"), "plain") for lm in (phi3, other))
    assert one.corners == two.corners
    torch.testing.assert_close(one.layers, two.layers, rtol=1e-4, atol=1e-4)
    delta, same = (run("seeking", lm, target) for lm in (phi3, other))
    for key, change in delta.changes.items():
        torch.testing.assert_close(change.entries(), same.changes[key].entries(), rtol=1e-3, atol=1e-4)


def test_what_a_shared_matrix_cannot_do_is_refused_by_name(make_lm):
    source, target = make_lm("llama", "source"), make_lm("phi3", "target")
    for name in ("seeking", "random_init"):
        with pytest.raises(
            UnsupportedModelError, match=r"q\+k\+v share one matrix in phi3.*method.parts=\[\"o\", \"down\"\]"
        ):
            run(name, source, target)
    with pytest.raises(
        ConfigError, match=r"gate\+up share one matrix in phi3.*method.parts lacks gate; name all of them"
    ):
        run("lora", source, target, parts=["up", "down"])
    run("seeking", make_lm("phi3", "source"), make_lm("llama", "target"), parts=["v", "up"])


def test_outputs_of_shared_matrices_give_the_same_grams(twins):
    align = make_task().split("align")
    fixed = draw_positions(twins["source"], align, "plain", 40, torch.Generator().manual_seed(0))
    for module in MODULES:
        shared, apart = (Grams(lm, side).stack(module) for lm, side in zip(twins["source"], fixed.sides, strict=True))
        assert torch.allclose(shared, apart, atol=1e-5 * float(apart.abs().max())), module
