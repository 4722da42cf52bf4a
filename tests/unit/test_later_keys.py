"""Options that older recipes do not have: unset, they change neither a file nor a hash; set, they decide."""

from __future__ import annotations

import pytest
import torch
from torch import Generator

from pkt import memo_stages
from pkt.align.hypernetwork import Hypernetwork
from pkt.errors import ConfigError, DataError
from pkt.methods.laten import LatenConfig
from pkt.models.families import PARTS
from pkt.recipe_files import load_recipe
from pkt.run import Run


@pytest.mark.parametrize(
    ("key", "word", "decides"),
    [
        ("task.extract=3", "extract: 3", "location"),
        ("method.depth=3", "depth: 3", "options"),
        ("evaluate.seed=7", "seed: 7", "scores"),
    ],
)
def test_later_keys_are_seen_only_where_they_are_set(tmp_path, key, word, decides):
    plain, given = (Run(load_recipe("nano_tuned", more), tmp_path) for more in ([], [key]))
    usual = Run(load_recipe("nano_tuned", [key.partition("=")[0] + ("=2" if "depth" in key else "=null")]), tmp_path)
    section, name = key.partition("=")[0].split(".")
    assert name not in plain.recipe.model_dump()[section]
    assert word not in plain.recipe.to_yaml()
    assert word in given.recipe.to_yaml()
    assert plain.certified_key() == usual.certified_key() != given.certified_key()
    assert plain.recipe.model_dump_json() == usual.recipe.model_dump_json()
    parts = {
        "location": memo_stages.keys,
        "options": lambda run: run.options.model_dump(),
        "scores": lambda run: run.scores_key("target"),
    }
    differs = {name for name, part in parts.items() if part(plain) != part(given)}
    assert differs == {decides}
    assert load_recipe("nano_tuned", [key]) == type(given.recipe).model_validate(
        load_recipe("nano_tuned", [key]).model_dump()
    )


def test_extract_keeps_the_first_examples(tmp_path):
    whole = Run(load_recipe("nano_tuned"), tmp_path).task
    few = Run(load_recipe("nano_tuned", ["task.extract=3"]), tmp_path).task
    assert few.split("extract") == whole.split("extract")[:3]
    assert few.split("align") == whole.split("align")
    both = Run(load_recipe("nano_tuned", ["task.extract=3", "task.labels=5"]), tmp_path).task
    assert len(both.split("extract")) + len(both.split("align")) == 5
    with pytest.raises(DataError, match="task.extract is 21, but the extract split holds 20"):
        _ = Run(load_recipe("nano_tuned", ["task.extract=21"]), tmp_path).task
    with pytest.raises(DataError, match="the method does not read the extract split"):
        _ = Run(load_recipe("nano_sft", ["task.extract=2"]), tmp_path).task
    with pytest.raises(ConfigError, match="task.extract: found 0"):
        load_recipe("nano_tuned", ["task.extract=0"])


# the hypernetwork's depth


def two_layers(gen: Generator, init: str) -> dict[str, list[torch.Tensor]]:
    """The weights of the published network, drawn one after the other."""
    found = {}
    for part in PARTS:
        first = 1e-5 if init == "published" else 6**-0.5
        second = 1e-5 if init == "published" else 0.01 * 5**-0.5
        made = [torch.nn.Linear(6, 5, bias=False), torch.nn.Linear(5, 4, bias=False)]
        for layer, std in zip(made, (first, second), strict=True):
            torch.nn.init.normal_(layer.weight, 0.0, std, generator=gen)
        found[part] = [layer.weight.detach() for layer in made]
    return found


@pytest.mark.parametrize("init", ["published", "fan_in"])
def test_two_layers_are_the_published_network_byte_for_byte(init):
    hyper = Hypernetwork(6, 4, Generator().manual_seed(3), hidden=5, init=init)
    expected = two_layers(Generator().manual_seed(3), init)
    slices = {part: torch.randn(2, 3, 6, generator=Generator().manual_seed(1)) for part in PARTS}
    found = hyper(slices)
    for part, (first, second) in expected.items():
        assert torch.equal(found[part], (slices[part] @ first.T).relu() @ second.T)


@pytest.mark.parametrize(("depth", "bias", "number"), [(1, False, 24), (1, True, 28), (2, False, 50), (3, True, 89)])
def test_depth_counts_linear_maps(depth, bias, number):
    hyper = Hypernetwork(6, 4, Generator().manual_seed(3), hidden=5, depth=depth, bias=bias, init="fan_in")
    assert sum(p.numel() for p in hyper.parts["up"].parameters()) == number
    slices = {part: torch.randn(1, 7, 6, generator=Generator().manual_seed(1)) for part in PARTS}
    one, two = hyper(slices)["up"], hyper({part: 2 * x for part, x in slices.items()})["up"]
    assert torch.allclose(two, 2 * one, atol=1e-6)  # with biases at zero a ReLU network has degree one
    minus = hyper({part: -x for part, x in slices.items()})["up"]
    assert torch.allclose(minus, -one, atol=1e-6) == (depth == 1)  # and only the linear map is odd


def test_depth_has_bounds():
    assert LatenConfig().depth == 2
    assert "depth" not in LatenConfig().model_dump()
    with pytest.raises(ValueError, match="depth"):
        LatenConfig(depth=0)
