"""Layer maps: the rules themselves, and that runs from before there was a choice keep their hashes."""

from __future__ import annotations

from itertools import combinations
from typing import get_args

import pytest
import torch

from pkt.errors import ConfigError, DataError, UnsupportedModelError
from pkt.extract.layers import LAYER_MAPS, depth, similarity, top_scores
from pkt.extract.pairing import LayerMapOptions, Pairing
from pkt.machine import Machine
from pkt.methods import METHODS
from pkt.recipe_files import load_recipe
from pkt.report.words import paired_by, shared_layers
from pkt.run import Run

METHODS_WITH_MAPS = ("direct", "laten", "random_init", "seeking")


def brute_force(alike: torch.Tensor) -> list[int]:
    """The best of all increasing assignments; of equal ones that whose last source layers are lowest."""
    num_source, num_target = alike.shape
    every = list(combinations(range(num_source), num_target))
    sums = {found: sum(float(alike[s, t]) for t, s in enumerate(found)) for found in every}
    best = max(sums.values())
    return list(min((found for found in every if sums[found] == best), key=lambda found: found[::-1]))


@pytest.mark.parametrize("sizes", [(1, 1), (2, 1), (4, 4), (5, 2), (6, 4), (8, 5), (9, 8)])
def test_the_assignment_is_the_best_of_all_increasing_ones(sizes):
    gen = torch.Generator().manual_seed(sum(sizes))
    for _ in range(40):
        alike = torch.randint(-(2**20), 2**20, sizes, generator=gen).double() / 2**20  # exact sums, negative ones too
        assert similarity(alike, "m") == brute_force(alike)


def test_of_equal_sums_the_earlier_source_layers_are_taken():
    gen = torch.Generator().manual_seed(0)
    for _ in range(100):
        alike = torch.randint(0, 2, (6, 3), generator=gen).double()
        assert similarity(alike, "m") == brute_force(alike)
    assert similarity(torch.zeros(5, 3), "m") == [0, 1, 2]


def test_the_best_partner_of_a_layer_yields_to_the_sum():
    """Each target layer alone would take source layer 2, or pairs that cross."""
    assert similarity(torch.tensor([[0.1, 0.0], [0.5, 0.2], [0.9, 0.6], [0.0, 0.1]]), "m") == [1, 2]
    assert similarity(torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]]), "m") == [1, 2]


def test_depth_is_the_middle_of_each_target_layer():
    assert depth(6, 4, "m") == [0, 2, 3, 5]
    assert depth(3, 2, "m") == [0, 2]
    assert depth(5, 1, "m") == [2]
    assert depth(7, 7, "m") == list(range(7))
    assert depth(40, 32, "m")[:6] == [0, 1, 3, 4, 5, 6]
    for num_source, num_target in ((80, 40), (40, 32), (33, 32), (100, 7)):
        found = depth(num_source, num_target, "m")
        assert found == [int((i + 0.5) * num_source / num_target) for i in range(num_target)]
        assert sorted(set(found)) == found
        assert found[-1] < num_source


@pytest.mark.parametrize(
    "make", [lambda: depth(32, 40, "m"), lambda: similarity(torch.zeros(32, 40), "m"), lambda: top_scores(torch.zeros(32), 40, "m")]
)  # fmt: skip
def test_a_source_with_fewer_layers_is_refused(make):
    with pytest.raises(UnsupportedModelError, match="m has 32 layers, but the target has 40: every target layer needs a source layer"):  # fmt: skip
        make()


def test_what_is_not_a_number_is_refused():
    alike = torch.zeros(4, 2)
    alike[3, 1] = float("nan")
    with pytest.raises(UnsupportedModelError, match="m: the similarity of its layer 3 to the target's layer 1 is nan"):
        similarity(alike, "m")


def test_whole_layers_go_by_the_sum_of_both_kinds():
    ffn, attention = torch.tensor([[0.9], [0.0], [0.5]]), torch.tensor([[0.0], [0.8], [0.5]])
    pairing = Pairing("similarity", {"ffn": ffn, "attention": attention})
    found = [pairing.layers(torch.zeros(3), 1, "m", kinds) for kinds in (["ffn"], ["attention"], ["ffn", "attention"])]
    assert found == [[0], [1], [2]]
    said = pairing.described([2], ["ffn", "attention"])
    assert said == {"layer_map": "similarity", "similarity": [1.0], "similarity_at_depth": [pytest.approx(0.8)]}


def test_the_option_names_all_maps_and_every_method_that_pairs_layers_has_it():
    assert get_args(LayerMapOptions.model_fields["layer_map"].annotation) == tuple(LAYER_MAPS)
    having = [name for name in METHODS.names() if issubclass(METHODS.get(name).config, LayerMapOptions)]
    assert tuple(having) == METHODS_WITH_MAPS
    for name in having:
        with pytest.raises(ConfigError, match="method.layer_map: found 'deepth'; expected 'top_scores', 'depth' or 'similarity'"):  # fmt: skip
            _run(name, "deepth")


BEFORE = {
    "nano_tuned": ("99850fb79d75e399", "48f1dc7c88e7b725", "1509c3970e5299ba"),
    "nano_laten_activations": ("f914b5177412d9f2", "1d7bfd2cdf67fc81", "f26cf2d1659d985d"),
    "nano_direct": ("891ac412a4c92a1c", "a85ef88be25ee6d2", "3114b9d3646bad76"),
    "nano_seeking": ("4c6b5441a1de96a8", "87fe3c6401ccc69e", "7389e91a5bfc5b94"),
    "nano_random_init": ("a438bfaa4b74f975", "cc24ad21b38c81c5", "172aca31d22c3889"),
}
"""First digits of the keys of the stages `locate` and `align` and of what decides a certificate, when the published map was the only one."""


def stage_keys(run: Run) -> tuple[str, ...]:
    """What the stages would be done under; nothing is done."""
    seen = {}
    run.stages.run = lambda stage, key, make, **_: seen.update({stage: key})
    run.stages.drop = lambda stage: None
    run.locate()
    with pytest.raises(DataError, match="no such delta"):
        run.align()
    return tuple(key[:16] for key in (seen["locate"], seen["align"], run.certified_key()))


@pytest.mark.parametrize("name", BEFORE)
def test_runs_with_the_published_map_keep_their_keys(tmp_path, name):
    made = Run(load_recipe(name), tmp_path / "out", Machine("cpu"))
    assert "layer_map" not in made.recipe.to_yaml()
    assert stage_keys(made) == BEFORE[name]
    named = Run(load_recipe(name, ["method.layer_map=top_scores"]), tmp_path / "out", Machine("cpu"))
    assert stage_keys(named) == BEFORE[name]


@pytest.mark.parametrize("name", BEFORE)
def test_another_map_is_another_run(tmp_path, name):
    keys = {}
    for layer_map in ("depth", "similarity"):
        made = Run(load_recipe(name, [f"method.layer_map={layer_map}"]), tmp_path / "out", Machine("cpu"))
        assert f"layer_map: {layer_map}" in made.recipe.to_yaml()
        keys[layer_map] = stage_keys(made)
    for i, old in enumerate(BEFORE[name]):
        found = {old, *(key[i] for key in keys.values())}
        # depth needs what was located already, but for the norms of Seeking's blocks
        same = i == 0 and name in ("nano_tuned", "nano_laten_activations", "nano_direct")
        assert len(found) == (2 if same else 3)


def _run(name: str, layer_map: str) -> Run:
    from pathlib import Path

    recipe = load_recipe("nano_tuned").model_copy(update={"method": {"name": name, "layer_map": layer_map}})
    return Run(recipe, Path("nowhere"), Machine("cpu"))


def test_the_page_says_which_map_was_used():
    pairs = {"source_scores": [1.0, 2.0, 3.0], "target_scores": [1.0, 2.0], "map": [(0, 0), (2, 1)]}
    layers = {"ffn": pairs, "attention": pairs}
    assert paired_by(layers) == "Layer map top_scores: the source layers with the highest scores, as published."
    assert shared_layers(layers) != ""
    by_depth = {kind: {**pairs, "layer_map": "depth"} for kind in layers}
    assert paired_by(by_depth).startswith("Layer map depth: the source layer at the same relative depth")
    assert shared_layers(by_depth) == ""  # equal by construction
    alike = {"layer_map": "similarity", "similarity": [0.5, 0.75], "similarity_at_depth": [0.5, 0.25]}
    said = paired_by({kind: {**pairs, **alike} for kind in layers})
    assert "Mean debiased CKA of the ffn pairs 0.625, of pairs of equal relative depth 0.375." in said
