"""The option `layer_map` in every method: what it changes, what it leaves, what it needs, and a certificate with it."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from certified_folders import CONTENT, ONE_PROCESS, read
from test_laten import examples, gen

from pkt.align.low_rank import low_rank
from pkt.align.source_start import SourceStartConfig, locate_blocks, source_start
from pkt.certify.arms import Setting, transfer
from pkt.config import Recipe
from pkt.evidence import certify
from pkt.execute import execute
from pkt.extract.layers import LAYER_MAPS
from pkt.extract.location import LocationConfig, located_neurons
from pkt.inject.delta import Delta
from pkt.methods import METHODS
from pkt.models.families import KINDS
from pkt.models.lm import LM
from pkt.plan import plan
from pkt.recipe_files import load_recipe
from pkt.run import Run
from pkt.similarity.layers import layer_similarity
from pkt.tasks.base import Task
from pkt.tasks.formats import FORMATS
from pkt.verify import rerun, verify

NAMES = ("laten", "direct", "seeking", "random_init")
TRAINING = {"epochs": 1, "batch_size": 2, "micro_batch": 2, "lr": 1e-3, "rank": 4}
OPTIONS = {
    "laten": {"init": "fan_in", "lr": 1e-2, "norm_weight": 1.0, "steps": 2, "schedule_steps": 2, "transfer_rate": 0.3},
    "direct": {"transfer_rate": 0.3, "mode": "add"},
    "seeking": TRAINING,
    "random_init": TRAINING,
}


def make_task(extract=3) -> Task:
    splits = {
        "extract": examples("flurbs", extract),
        "align": examples("zorps", 4),
        "train": examples("glims", 4),
        "test": examples("blicks", 2),
    }
    return Task("tiny", FORMATS["gsm8k"], lambda name: splits[name], "test")


@pytest.fixture
def source(make_lm) -> LM:
    """Four layers, so that the maps differ: the target has two."""
    return make_lm("llama", "source", num_hidden_layers=4)


def config(name: str, **more):
    return METHODS.get(name).config(**{**OPTIONS[name], **more})


def run(name: str, source: LM, target: LM, task: Task | None = None, **more) -> Delta:
    return METHODS.get(name)(source, target, task or make_task(), config(name, **more), gen(), style="plain")


def maps(delta: Delta) -> dict[str, list[int]]:
    """Source layers by kind, from a delta's provenance."""
    found = delta.provenance
    if "layers" in found:
        return {kind: [s for s, _ in found["layers"][kind]["map"]] for kind in KINDS}
    return {"layers": found["blocks"]["layers"]}


def expected(name: str, source: LM, target: LM, layer_map: str) -> dict[str, list[int]]:
    """Of four layers 1 and 3 hold the middles of the halves; the most similar ones by trying all pairs."""
    if layer_map == "depth":
        return {kind: [1, 3] for kind in (KINDS if name in ("laten", "direct") else ["layers"])}
    alike = layer_similarity(source, target, make_task(), "plain")
    if name in ("seeking", "random_init"):
        alike = {"layers": alike["ffn"] + alike["attention"]}
    return {k: list(max(combinations(range(4), 2), key=lambda p, t=t: float(t[p[0], 0] + t[p[1], 1]))) for k, t in alike.items()}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_method_takes_the_layers_of_the_map(source, tiny_target, name):
    found = {layer_map: run(name, source, tiny_target, layer_map=layer_map) for layer_map in LAYER_MAPS}
    for layer_map in ("depth", "similarity"):
        assert maps(found[layer_map]) == expected(name, source, tiny_target, layer_map)
        said = found[layer_map].provenance
        said = said["layers"]["ffn"] if "layers" in said else said["blocks"]
        assert said["layer_map"] == layer_map
        assert ("similarity" in said) == (layer_map == "similarity")
    assert maps(found["depth"]) != maps(found["similarity"])
    entries = {key: torch.cat([c.entries().flatten() for c in d.changes.values()]) for key, d in found.items()}
    assert not torch.equal(entries["depth"], entries["similarity"])
    assert not torch.equal(entries["depth"], entries["top_scores"])
    assert "layer_map" not in str(found["top_scores"].provenance)


def test_the_values_are_those_of_the_mapped_layers(source, tiny_target):
    """What `direct` adds to a target layer are columns of the source layer that the map names, and of no other."""
    for layer_map in ("depth", "similarity"):
        delta = run("direct", source, tiny_target, layer_map=layer_map)
        found = maps(delta)
        for kind, part in (("ffn", "down"), ("attention", "o")):
            for layer, given in enumerate(found[kind]):
                change = delta.changes[layer, part].values
                for at in range(4):
                    columns = source.tensor(f"{source.family.module(part, at)}.weight").T[:, :32]
                    taken = [any(torch.equal(row, column) for column in columns) for row in change]
                    assert all(taken) if at == given else not any(taken)


def test_adapters_start_at_blocks_of_the_mapped_layers(source, tiny_target):
    for layer_map in ("depth", "similarity"):
        cfg = SourceStartConfig(rank=4, layer_map=layer_map)
        found = locate_blocks(source, tiny_target, make_task(), cfg, "plain")
        start = source_start(source, tiny_target, found, cfg, gen())
        assert {"layers": found.layers} == expected("seeking", source, tiny_target, layer_map)
        for layer, given in enumerate(found.layers):
            block = source.part_block(given, "up", found.blocks.corners[given, "up"], (56, 32))
            best = low_rank(block, 4, split="left", method="exact", gen=gen())
            torch.testing.assert_close(start[layer, "up"].entries(), best.entries(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer_map", LAYER_MAPS)
def test_states_are_drawn_to_those_of_the_ffn_map(source, tiny_target, layer_map):
    found = run("laten", source, tiny_target, layer_map=layer_map, alignment="activations")
    assert [row["source"] for row in found.provenance["state_maps"]] == maps(found)["ffn"]


@pytest.mark.parametrize("layer_map", ["depth", "similarity"])
def test_one_map_for_all_examples_where_each_step_locates_on_its_own(source, tiny_target, layer_map):
    found = run("direct", source, tiny_target, layer_map=layer_map, locate="per_example")
    assert maps(found) == expected("direct", source, tiny_target, layer_map)


@pytest.mark.parametrize("layer_map", ["depth", "similarity"])
def test_neurons_are_verified_in_the_layers_of_the_map(source, tiny_target, layer_map):
    cfg = LocationConfig(layer_map=layer_map, transfer_rate=0.3)
    of_source, _ = located_neurons(source, tiny_target, make_task(), cfg, "plain")
    want = expected("laten", source, tiny_target, layer_map)
    for sets in of_source:
        assert {kind: [i for i, held in enumerate(sets[kind]) if held] for kind in KINDS} == want


@pytest.mark.parametrize("name", ["laten", "direct", "seeking"])
@pytest.mark.parametrize("layer_map", ["depth", "similarity"])
def test_control_arms_have_the_map_of_the_real_source(source, tiny_target, name, layer_map):
    method, cfg = METHODS.get(name), config(name, layer_map=layer_map)
    setting = Setting(method, source, tiny_target, make_task(), "plain")
    arms = ["real_source", "random_source", "shuffled_source"]
    arms += ["random_neurons"] * (method.random_neurons is not None)
    found = [maps(transfer(arm, setting, cfg, 3)) for arm in arms]
    assert all(other == found[0] for other in found)
    itself = transfer("self_source", setting, cfg, 3)
    assert all(layers == [0, 1] for layers in maps(itself).values())
    if name == "laten":
        assert all(layers == [0, 1] for layers in maps(transfer("no_source", setting, cfg, 3)).values())


def test_a_model_is_most_like_itself_layer_by_layer(tiny_target):
    """The self-map is the identity by the similarities too, not only for want of another."""
    for alike in layer_similarity(tiny_target, tiny_target, make_task(), "plain").values():
        torch.testing.assert_close(alike.diagonal(), torch.ones(2, dtype=torch.float64))
        assert float(alike[0, 1]) < 1 > float(alike[1, 0])


@pytest.mark.parametrize("name", ["laten", "direct", "seeking"])
def test_the_stage_locate_records_all_that_the_map_needs(source, tiny_target, tmp_path, monkeypatch, name):
    ours, theirs = (LM(lm.name, device="cpu", memo=tmp_path) for lm in (source, tiny_target))
    method, cfg, task = METHODS.get(name), config(name, layer_map="similarity"), make_task()
    method.locate(ours, theirs, task, cfg, "plain")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert any(path.name.startswith("similarity-") for path in before)
    monkeypatch.setattr(ours, "_load", lambda dtype=None: pytest.fail("the source was loaded again"))
    again = method(ours, theirs, task, cfg, gen(), style="plain")
    assert maps(again) == maps(run(name, source, tiny_target, layer_map="similarity"))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_norms_of_blocks_are_kept_by_map_and_by_target(source, tiny_target, make_lm, tmp_path):
    lm = LM(source.name, device="cpu", memo=tmp_path)
    for layer_map in LAYER_MAPS:
        locate_blocks(lm, tiny_target, make_task(), SourceStartConfig(rank=4, layer_map=layer_map), "plain")
    assert len(list(tmp_path.glob("blocks-*.safetensors"))) == 3
    for layer_map in LAYER_MAPS:
        cfg = SourceStartConfig(rank=4, layer_map=layer_map)
        kept, fresh = (locate_blocks(one, tiny_target, make_task(), cfg, "plain") for one in (lm, source))
        assert kept.layers == fresh.layers
        assert kept.norms == pytest.approx(fresh.norms)


def test_similarities_are_of_the_examples_to_locate_with(source, tiny_target):
    task, cfg = make_task(), config("laten", layer_map="similarity")
    method, other = METHODS.get("laten"), make_task().located_with(examples("drams", 3))
    assert method.location_key(task, cfg) != method.location_key(other, cfg)
    renamed = replace(task, load=lambda split: task.split(split), _splits={})
    assert method.location_key(renamed, cfg) == method.location_key(task, cfg)
    one, two = (layer_similarity(source, tiny_target, t, "plain")["ffn"] for t in (task, other))
    assert not torch.equal(one, two)


def tiny(recipe, source: LM, **sections) -> Recipe:
    """A recipe of the tiny pair with a source of four layers."""
    method = {"name": "laten", **OPTIONS["laten"], "layer_map": "similarity"}
    return load_recipe(str(recipe(**{"source": source.name, "method": method, "dtype": "float32", **sections})))


def test_too_little_text_is_refused_before_anything_is_read(recipe, source, data, pkt, tmp_path):
    task = {"name": "gsm8k", "data": str(data), "prompt_style": "plain"}
    method = {"name": "laten", **OPTIONS["laten"], "layer_map": "similarity"}
    extract = data / "splits" / "gsm8k" / "extract.jsonl"
    extract.write_text(extract.read_text().splitlines()[0] + "\n")
    asked = recipe(source=source.name, task=task, method=method)
    pkt("run", asked, "--out", tmp_path / "out").refuses("in 1 of them", "expected 16 positions in two texts at least")
    assert not (tmp_path / "out").exists()
    blocks = recipe(
        source=source.name, task=task, method={**OPTIONS["seeking"], "name": "seeking", "layer_map": "similarity"}
    )
    pkt("analyze", "parametric", blocks, "--out", tmp_path / "out").refuses("in 1 of them", "expected 16 positions")
    assert not (tmp_path / "out").exists()
    assert pkt("run", asked, "--out", tmp_path / "out", "--set", "method.layer_map=depth").code == 0


def test_the_plan_says_which_map(recipe, source, tmp_path):
    def said(layer_map: str) -> tuple[str, str, list[str]]:
        made = tiny(recipe, source, method={"name": "laten", **OPTIONS["laten"], "layer_map": layer_map})
        found = plan(Run(made, tmp_path / layer_map, ONE_PROCESS))
        return found.notes[0], found.moved[0]["layers"], [row["stage"] for row in found.costs]

    note, layers, stages = said("top_scores")
    assert note.startswith("Layer map top_scores: ")
    assert layers == "2 of the source's 4, highest ffn scores"
    assert not any("compare" in stage for stage in stages)
    note, layers, stages = said("depth")
    assert note == "Layer map depth: target layers 0 to 1 take source layers 1, 3."
    assert layers == "2 of the source's 4, of equal relative depth"
    assert not any("compare" in stage for stage in stages)
    note, layers, stages = said("similarity")
    assert note.endswith("known after both models have read the extract split's texts.")
    assert layers == "2 of the source's 4, with outputs of down_proj most alike"
    assert [stage for stage in stages if "compare" in stage] == [
        "compare layers, the source",
        "compare layers, the target",
    ]


def test_a_run_by_similarity_and_its_page(recipe, source, short_answers, tmp_path):
    execute(tiny(recipe, source), tmp_path / "out", ONE_PROCESS)
    page, summary = (tmp_path / "out" / "report.html").read_text(), read(tmp_path / "out" / "summary.json")
    part = summary["layers"]["ffn"]
    assert part["layer_map"] == "similarity"
    assert f"Mean debiased CKA of the ffn pairs {sum(part['similarity']) / 2:.3f}" in page
    files = read(tmp_path / "out" / "stages.json")["locate"]["files"]
    assert sum("gram-" in file for file in files) == 2 * (4 + 2)
    assert sum("similarity-" in file for file in files) == 1


def test_a_certificate_by_similarity(recipe, source, short_answers, plain_page, tmp_path):
    made = tiny(
        recipe,
        source,
        evaluate={"limit": 3},
        certificate={
            "seeds": 2,
            "learning_rates": "recipe",
            "arms": ["random_source", "self_source", "no_source", "wrong_task"],
            "wrong_task": {"name": "nano/gsm8k"},
        },
    )
    found = certify(made, tmp_path / "c", ONE_PROCESS)
    assert {row["arm"] for row in found["arms"] if row["reason"] is None} >= set(CONTENT["certificate"]["arms"])
    assert all(check.holds is not False for check in verify(tmp_path / "c", ONE_PROCESS))
    assert all(check.holds for check in rerun(tmp_path / "c", "random_source", ONE_PROCESS))
    stages = read(tmp_path / "c" / "stages.json")
    kept = {
        stage: [f for f in stages[stage]["files"] if "similarity-" in f] for stage in ("locate", "locate wrong_task")
    }
    assert len(kept["locate"]) == len(kept["locate wrong_task"]) == 1
    assert kept["locate"] != kept["locate wrong_task"]
