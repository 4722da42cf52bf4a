"""Sources that stand in for the real one: noise of its size, and its own lines in other places."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pkt.errors import DataError, UnsupportedModelError
from pkt.models.controls import RandomSource, ShuffledSource
from pkt.models.families import LINE_AXIS
from pkt.models.lm import LM

EVERY = {"up": 80, "down": 80, "v": 16, "o": 48}
"""Lines of each part of the tiny source."""
LAYERS = 3


@pytest.fixture(scope="module")
def source(make_lm, tmp_path_factory) -> LM:
    """The tiny source with another mean and size in every module and layer, and in the second half of a module's lines."""
    tiny = make_lm("llama", "source")
    folder = tmp_path_factory.mktemp("uneven")
    for path in Path(tiny.name).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights = load_file(folder / "model.safetensors")
    for number, (part, size) in enumerate(EVERY.items()):
        for layer in range(LAYERS):
            name = f"{tiny.family.module(part, layer)}.weight"
            weight = (1 + number + 4 * layer) * (weights[name] + 0.3)
            weight.narrow(LINE_AXIS[part], size // 2, size - size // 2).mul_(5)
            weights[name] = weight
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return LM(folder, device="cpu")


def lines(part: str, first: int = 0, end: int | None = None) -> dict[int, list[int]]:
    return {layer: list(range(first, EVERY[part] if end is None else end)) for layer in range(LAYERS)}


def test_noise_has_the_mean_and_variance_of_the_lines_asked_for(source):
    noise = RandomSource(source, 0)
    for part, size in EVERY.items():
        for asked in (lines(part), lines(part, 0, size // 2), lines(part, size // 2)):
            real, got = source.slices(part, asked), noise.slices(part, asked)
            for layer, real_KD in real.items():
                std, count = float(real_KD.std()), real_KD.numel()
                assert got[layer].shape == real_KD.shape
                assert float(got[layer].mean()) == pytest.approx(float(real_KD.mean()), abs=4 * std / count**0.5)
                assert float(got[layer].std()) == pytest.approx(std, rel=4 / (2 * count) ** 0.5)
                assert (got[layer] - real_KD).abs().mean() > 0.5 * std


def test_a_line_has_its_own_noise_whatever_it_is_asked_for_with(source):
    noise = RandomSource(source, 3)
    alone, among = noise.slices("down", {1: [7, 2]})[1], noise.slices("down", {0: [5], 1: [50, 2, 79, 7]})[1]

    def standard(line: torch.Tensor) -> torch.Tensor:
        return (line - line.mean()) / line.std()

    torch.testing.assert_close(standard(alone[0]), standard(among[3]), rtol=0, atol=1e-4)
    torch.testing.assert_close(standard(alone[1]), standard(among[1]), rtol=0, atol=1e-4)
    assert (standard(among[0]) - standard(among[1])).abs().max() > 0.5
    assert not torch.equal(alone, among[[3, 1]])


def test_noise_of_other_seeds_parts_and_layers_is_unrelated(source):
    base = RandomSource(source, 0).slices("up", lines("up"))[0]
    others = [
        RandomSource(source, 1).slices("up", lines("up"))[0],
        RandomSource(source, 0).slices("up", lines("up"))[1],
        RandomSource(source, 0).slices("down", lines("down"))[0],
    ]
    for other in others:
        assert abs(float(torch.corrcoef(torch.stack([base.flatten(), other.flatten()]))[0, 1])) < 0.1
    assert torch.equal(base, RandomSource(source, 0).slices("up", lines("up"))[0])


@pytest.mark.parametrize("control", [RandomSource, ShuffledSource])
def test_order_and_repeats_are_those_asked_for(source, control):
    """Attention neurons of one group share a row of `v_proj`."""
    found = RandomSource(source, 0).slices("v", {2: [4, 1, 4]})[2]
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])
    shapes = {at: t.shape for at, t in control(source, 0).slices("v", {2: [4, 1, 4], 0: [3]}).items()}
    assert shapes == {2: (3, 48), 0: (1, 48)}


def test_shuffled_lines_are_the_real_ones_in_other_layers_and_places(source):
    real, mixed = source.slices("o", lines("o")), ShuffledSource(source, 0).slices("o", lines("o"))
    assert list(mixed) == list(real)
    assert all(mixed[layer].shape == real[layer].shape for layer in real)
    place_of = {tuple(line.tolist()): (at, i) for at, lines_KD in real.items() for i, line in enumerate(lines_KD)}
    moved = [(at, place_of.pop(tuple(line.tolist()))) for at, lines_KD in mixed.items() for line in lines_KD]
    assert not place_of
    across = sum(at != before[0] for at, before in moved)
    assert 0.5 < across / len(moved) < 0.8  # two thirds by chance


def test_every_part_and_seed_has_a_permutation_of_its_own(source):
    """`up` and `down` have as many lines: the same permutation would keep a neuron's row and column together."""

    def order(part: str, seed: int) -> list[int]:
        mixed = torch.cat(list(ShuffledSource(source, seed).slices(part, lines(part)).values()))
        real = torch.cat(list(source.slices(part, lines(part)).values()))
        return [int((real == line).all(1).nonzero()[0, 0]) for line in mixed]

    up = order("up", 0)
    assert up == order("up", 0)
    for other in (order("down", 0), order("up", 1)):
        assert sum(a == b for a, b in zip(up, other, strict=True)) < 12  # one by chance


def test_whole_tensors(source):
    name = f"{source.family.module('gate', 1)}.weight"
    real = source.tensor(name)
    noise, mixed = RandomSource(source, 0).tensor(name), ShuffledSource(source, 0).tensor(name)
    assert noise.shape == mixed.shape == real.shape
    assert float(noise.mean()) == pytest.approx(float(real.mean()), abs=4 * float(real.std()) / real.numel() ** 0.5)
    assert float(noise.std()) == pytest.approx(float(real.std()), rel=0.1)
    assert torch.equal(mixed.flatten().sort().values, real.flatten().sort().values)
    assert (mixed == real).float().mean() < 0.05
    assert torch.equal(noise, RandomSource(source, 0).tensor(name))
    assert torch.equal(mixed, ShuffledSource(source, 0).tensor(name))
    assert not torch.equal(noise, RandomSource(source, 1).tensor(name))
    assert not torch.equal(mixed, ShuffledSource(source, 1).tensor(name))


@pytest.mark.parametrize("control", [RandomSource, ShuffledSource])
def test_all_but_the_values_is_the_real_source(source, control):
    files = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in Path(source.name).iterdir()}
    handle = control(source, 0)
    assert (handle.name, handle.dims, handle.digest) == (source.name, source.dims, source.digest)
    assert handle.tokenizer is source.tokenizer
    assert json.loads(handle.config.to_json_string()) == json.loads(source.config.to_json_string())
    with pytest.raises(UnsupportedModelError, match=r"reads values through `slices` and `tensor`"):
        handle.loaded()
    with handle.for_location() as model, source.loaded() as real:
        assert model is real
        handle.slices("up", lines("up"))
        handle.tensor("model.norm.weight")
        stored = load_file(Path(source.name) / "model.safetensors")
        assert all(torch.equal(weight, stored[name]) for name, weight in model.state_dict().items())
    assert files == {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in Path(source.name).iterdir()}


@pytest.mark.parametrize("count", [2, 3, 16, 300])
def test_shuffled_prompts_all_change_places(source, count):
    orders = [ShuffledSource(source, seed).elsewhere("answers", count) for seed in range(20)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    assert all(order[i] != i for order in orders for i in range(count))
    assert count == 2 or len({tuple(order) for order in orders}) > 1
    with pytest.raises(DataError, match="one prompt alone has no other"):
        ShuffledSource(source, 0).elsewhere("answers", 1)


def test_the_weights_of_a_control_cannot_be_had(source):
    for handle in (RandomSource(source, 0), ShuffledSource(source, 0)):
        for load in (handle.loaded, handle.private):
            with pytest.raises(UnsupportedModelError, match="whose weights cannot be loaded"):
                load()
