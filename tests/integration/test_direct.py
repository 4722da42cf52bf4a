"""The direct transfer: an independent computation of every line, and the collapse it is there to show."""

from __future__ import annotations

import pytest
import torch
from certified_folders import ONE_PROCESS, small_recipe

import pkt
from pkt.errors import ConfigError, UnsupportedModelError
from pkt.evidence import certify
from pkt.extract.attribution import attribute
from pkt.methods.direct import DirectConfig, direct
from pkt.models.controls import RandomSource, ShuffledSource
from pkt.plan import plan
from pkt.recipe_files import load_recipe
from pkt.run import Run
from pkt.tasks.base import Example, Task
from pkt.tasks.formats import FORMATS


def make_task() -> Task:
    splits = {
        name: [
            Example(f"{word}{i}", f"How much are {i} {word}?", f"So the answer is {i * 7}.", str(i * 7), f"{word}{i}")
            for i in range(1, 4)
        ]
        for name, word in (("extract", "flurbs"), ("test", "blicks"))
    }
    return Task("tiny", FORMATS["gsm8k"], lambda name: splits[name], "test")


def transfer(source, target, task=None, seed=0, **options):
    gen = torch.Generator().manual_seed(seed)
    return direct(source, target, task or make_task(), DirectConfig(**options), gen, style="plain")


def weight(lm, part: str, layer: int) -> torch.Tensor:
    """With one neuron a row."""
    w = lm.tensor(f"{lm.family.module(part, layer)}.weight")
    return w.T if part in ("down", "o") else w


def expected(source, target, task, rate: float, mode: str, scale: float) -> dict[tuple, dict[int, torch.Tensor]]:
    """(layer, part) -> line -> change, one neuron at a time."""
    found: dict[tuple, dict[int, list]] = {}
    scores = [attribute(lm, task.split("extract"), "plain").summed() for lm in (source, target)]
    width = target.dims.width
    for kind, parts in (("ffn", ("up", "down")), ("attention", ("v", "o"))):
        num, depth = int(target.dims.neurons(kind) * rate), target.dims.layers
        order = sorted(range(source.dims.layers), key=lambda i: (-float(scores[0].layers[kind][0, i]), i))
        for layer, given in enumerate(sorted(order[:depth])):
            rows = [scores[0].neurons[kind][0, given].tolist(), scores[1].neurons[kind][0, layer].tolist()]
            best = [sorted(range(len(r)), key=lambda n, r=r: (-r[n], n))[:num] for r in rows]
            for s, t in zip(*best, strict=True):
                for part in parts:
                    s_line, t_line = (source.dims.v_row(s), target.dims.v_row(t)) if part == "v" else (s, t)
                    slice_D = weight(source, part, given)[s_line][:width]
                    change_D = torch.zeros(width)
                    change_D[: len(slice_D)] = scale * slice_D
                    if mode == "replace":
                        change_D -= weight(target, part, layer)[t_line]
                    found.setdefault((layer, part), {}).setdefault(t_line, []).append(change_D)
    return {key: {line: torch.stack(c).mean(0) for line, c in lines.items()} for key, lines in found.items()}


@pytest.mark.parametrize("mode", ["replace", "add"])
@pytest.mark.parametrize("wider", ["source", "target"])
def test_every_line_is_the_slice_cut_or_padded(make_lm, mode, wider):
    """Grouped heads: lines that fall on one row of `v_proj` are averaged."""
    source, target = make_lm("llama", "source"), make_lm("llama", "target")
    task, rate = make_task(), 0.5
    if wider == "target":
        source, target, task, rate = (
            pkt.LM("nano/target", device="cpu"),
            pkt.LM("nano/lineage-easy", device="cpu"),
            pkt.task("nano/mmlu"),
            0.1,
        )
    delta = transfer(source, target, task, transfer_rate=rate, mode=mode, scale=0.5)
    want = expected(source, target, task, rate, mode, 0.5)
    assert delta.changes.keys() == want.keys()
    for key, change in delta.changes.items():
        assert change.index.tolist() == sorted(want[key])
        torch.testing.assert_close(change.values, torch.stack([want[key][i] for i in change.index.tolist()]))
    assert len(delta.changes[0, "v"].index) < len(delta.changes[0, "o"].index)  # the case is one with merged rows
    assert {k: delta.provenance[k] for k in ("trained_parameters", "steps", "labels")} == {
        "trained_parameters": 0,
        "steps": 0,
        "labels": len(task.split("extract")),
    }


def test_control_arms_change_the_values_and_the_target_itself_changes_nothing(tiny_source, tiny_target):
    real = transfer(tiny_source, tiny_target)
    others = [transfer(control(tiny_source, 0), tiny_target) for control in (RandomSource, ShuffledSource)]
    for other in others:
        for key, change in real.changes.items():
            assert torch.equal(other.changes[key].index, change.index)
            assert not torch.equal(other.changes[key].values, change.values)
    assert transfer(tiny_target, tiny_target).norm() == 0
    assert transfer(tiny_target, tiny_target, mode="add").norm() > 0


def test_same_seed_same_bytes_and_both_models_unchanged(tiny_source, tiny_target, tmp_path):
    with tiny_target.loaded() as model:
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        for name, seed in (("a", 1), ("b", 1), ("c", 2)):
            transfer(tiny_source, tiny_target, seed=seed, locator="random").save(tmp_path / name)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


def test_per_example_takes_the_neurons_of_one_drawn_example(tiny_source, tiny_target):
    task = make_task()
    alone = [transfer(tiny_source, tiny_target, task.located_with([e])) for e in task.split("extract")]
    index = [[c.index.tolist() for c in delta.changes.values()] for delta in alone]
    drawn = {
        index.index([c.index.tolist() for c in delta.changes.values()])
        for delta in (transfer(tiny_source, tiny_target, task, seed=s, locate="per_example") for s in range(8))
    }
    assert len(drawn) > 1
    described = transfer(tiny_source, tiny_target, task, locate="per_example").provenance["layers"]
    assert {part["examples"] for part in described.values()} == {1}
    singles = [delta.provenance["layers"]["ffn"] for delta in alone]
    ffn = described["ffn"]
    assert any(ffn["map"] == one["map"] and ffn["source_scores"] == pytest.approx(one["source_scores"], abs=1e-5) for one in singles)  # fmt: skip


def test_pairs_that_lack_something_are_refused(tiny_source, tiny_target):
    with pytest.raises(UnsupportedModelError, match="has 2 layers, but the target has 3"):
        transfer(tiny_target, tiny_source)
    with pytest.raises(ConfigError, match="selects no attention neuron"):
        transfer(tiny_source, tiny_target, transfer_rate=0.02)


def test_replacing_ruins_what_the_target_knows():
    """The collapse: `known` of nano/gsm8k falls from 1.00 to below 0.1 with a tenth of the lines replaced."""
    source, target = (pkt.LM(f"nano/{name}", device="cpu", dtype="float32") for name in ("source", "target"))
    task = pkt.task("nano/gsm8k")
    delta = pkt.transfer("direct", source, target, task, style="plain")

    def known(delta=None) -> float:
        scores = pkt.evaluate(target, task, delta=delta, style="plain", limit=40)
        found = [line["score"] for line in scores if line["tier"] == "known"]
        return sum(found) / len(found)

    assert known() > 0.9
    assert known(delta) < 0.1


@pytest.mark.usefixtures("plain_page")
def test_it_is_certified_without_learning_rates(tmp_path):
    recipe = small_recipe(certificate={"arms": ["self_source", "random_neurons"]})
    recipe = recipe.model_copy(update={"method": {"name": "direct"}})
    found = certify(recipe, tmp_path / "out", ONE_PROCESS)
    reasons = {row["arm"]: row["reason"] for row in found["arms"] if row["reason"]}
    assert reasons["no_source"] == "direct does nothing without a source"
    assert {row["lr"] for row in found["arms"]} == {None}
    assert {row["trained_parameters"] for row in found["arms"] if not row["reason"]} == {0}


def test_it_can_be_planned(tmp_path):
    found = plan(Run(load_recipe("nano_direct"), tmp_path, ONE_PROCESS))
    assert [row["lines"] for row in found.moved][:2] == [
        "25 rows of 256 in each layer",
        "25 columns of 256 in each layer",
    ]
    assert not [row for row in found.costs if row["stage"].startswith("align")]
