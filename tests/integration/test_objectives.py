"""Alignment without labels: what is minimised, that no label is read, control arms, determinism, refusals."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from certified_folders import ONE_PROCESS, small_recipe

from pkt.align.activations import map_states, prompts, state_errors
from pkt.align.alignment import Options, Schedule, align
from pkt.align.moments import Goal, MomentLoss, goal_maker, moments
from pkt.certification import Certification
from pkt.certify.arms import Setting
from pkt.certify.arms import transfer as arm_transfer
from pkt.errors import ConfigError, DataError, TrainingError, UnsupportedModelError
from pkt.execute import execute
from pkt.extract.location import LocationConfig, attributions, counts, locate
from pkt.extract.slices import line_index, place
from pkt.inject.apply import injected, write_
from pkt.inject.changes import Lines
from pkt.inject.delta import Delta
from pkt.methods.laten import LatenConfig, laten
from pkt.models.controls import RandomSource, ShuffledSource
from pkt.models.families import KINDS
from pkt.models.lm import LM
from pkt.plan import plan
from pkt.recipe_files import load_recipe
from pkt.run import Run
from pkt.tasks.base import Example, Task
from pkt.tasks.formats import FORMATS

LABEL_FREE = ("activations", "moments")
TUNED = {"init": "fan_in", "lr": 1e-2, "norm_weight": 1.0, "steps": 4, "schedule_steps": 4}


def make_task(align=6, answer="So the answer is {}.") -> Task:
    def examples(word: str, count: int, text: str = "So the answer is {}.") -> list[Example]:
        return [
            Example(f"{word}{i}", f"How much are {i} {word}?", text.format(i * 7), str(i * 7), f"{word}{i}")
            for i in range(1, count + 1)
        ]

    splits = {
        "extract": examples("flurbs", 3),
        "align": examples("zorps", align, answer),
        "test": examples("blicks", 2),
    }
    return Task("tiny", FORMATS["gsm8k"], lambda name: splits[name], "test")


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def transfer(source, target, alignment, task=None, seed=0, **options) -> Delta:
    cfg = LatenConfig(**{**TUNED, "alignment": alignment, **options})
    return laten(source, target, task or make_task(), cfg, gen(seed), style="plain")


def values(delta: Delta) -> torch.Tensor:
    return torch.cat([c.entries().flatten() for _, c in sorted(delta.changes.items())])


def located(source: LM, target: LM, rate=0.3):
    scores = attributions(source, target, make_task(), LocationConfig(), "plain")
    return locate(source, target, scores, counts(target.dims, rate))


def some_changes(at, target: LM, seed=0) -> dict[str, torch.Tensor]:
    made = gen(seed)
    return {part: 0.1 * torch.randn(*t.shape[:2], target.dims.width, generator=made) for part, t in at.slices.items()}


# What is minimised


def plain_moments(numbers: list[float], unit: float) -> list[float]:
    count = len(numbers)
    mean = sum(numbers) / count
    deviation = math.sqrt(sum((x - mean) ** 2 for x in numbers) / count)
    third, fourth = (sum(((x - mean) / deviation) ** p for x in numbers) / count for p in (3, 4))
    return [mean / unit, deviation / unit, third, fourth - 3]


def test_the_moment_loss_is_that_of_the_written_weights(tiny_source, tiny_target):
    at = located(tiny_source, tiny_target)
    delta = place(some_changes(at, tiny_target), at.target, tiny_target.dims)
    goals = goal_maker(tiny_source, tiny_target)(at)
    errors = []
    with tiny_target.loaded() as model:
        before = {name: w.clone() for name, w in model.state_dict().items()}
        write_(model, delta)
        for kind, parts in KINDS.items():
            for part in parts:
                for i, layer in enumerate(at.target.layers[kind]):
                    name = f"{tiny_target.family.module(part, layer)}.weight"
                    axis = 1 if part in ("down", "o") else 0
                    index = sorted(set(line_index(part, at.target.index[kind][i].tolist(), tiny_target.dims)))
                    changed = model.state_dict()[name].index_select(axis, torch.tensor(index))
                    got = plain_moments(changed.flatten().tolist(), float(before[name].std(correction=0)))
                    given = at.source.layers[kind][i]
                    whole = tiny_source.tensor(f"{tiny_source.family.module(part, given)}.weight")
                    want = plain_moments(at.slices[part][i].flatten().tolist(), float(whole.std(correction=0)))
                    errors.append(sum((a - b) ** 2 for a, b in zip(got, want, strict=True)) / 4)
        model.load_state_dict(before)
    with MomentLoss(lambda _step: goals).opened() as loss_of:
        leaf = Delta({k: Lines(c.index, c.values.clone().requires_grad_(), c.axis) for k, c in delta.changes.items()})
        assert loss_of(lambda: leaf, 0) == pytest.approx(sum(errors) / len(errors), rel=1e-4)


def test_the_gradient_of_the_moments_is_that_of_finite_differences():
    lines = torch.randn(3, 5, generator=gen(), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: moments(x, torch.tensor(0.7)), (lines.requires_grad_(),))


def mapped(source: LM, target: LM, task: Task | None = None, seed=0):
    examples = (task or make_task()).split("align")
    return map_states(
        source, target, examples, prompts(examples, "plain", source, target, FORMATS["gsm8k"]), [0, 2], 0.1, gen(seed)
    )


def test_a_text_longer_than_either_context_is_refused(make_lm, tiny_target):
    short = make_lm("llama", "source", max_position_embeddings=8)
    with pytest.raises(DataError, match=r"has \d+ tokens, but the context holds 8; shorten or remove it"):
        mapped(short, tiny_target)


def hidden(model, ids: list[int]) -> list[torch.Tensor]:
    """The stream after each layer, read without hooks: a layer's output is the next one's input."""
    kept: list[torch.Tensor] = []
    states = model.model(torch.tensor([ids]), output_hidden_states=True, use_cache=False).hidden_states
    handle = model.model.norm.register_forward_pre_hook(lambda _m, args: kept.append(args[0]))
    model.model(torch.tensor([ids]), use_cache=False)
    handle.remove()
    return [*(s[0] for s in states[1:-1]), kept[-1][0]]


def test_the_maps_are_ridge_regressions_on_the_other_half(tiny_source, tiny_target):
    """The normal equations of [x, 1] with the intercept left out of the penalty, on states read without hooks."""
    examples = make_task().split("align")
    found = mapped(tiny_source, tiny_target)
    trained = {text.id for text in found.texts}
    assert len(trained) == 3
    states = {}
    with tiny_source.loaded() as large, tiny_target.loaded() as small, torch.no_grad():
        for e in examples:
            ids = tiny_target.tokenizer(e.prompt + "\nAnswer:")["input_ids"]
            states[e.id] = [[h[1:].double() for h in hidden(model, ids)] for model in (large, small)]
    for layer, given in enumerate([0, 2]):
        x, y = (
            torch.cat([states[e.id][m][at] for e in examples if e.id not in trained])
            for m, at in ((0, given), (1, layer))
        )
        one = torch.cat([x, torch.ones(len(x), 1)], dim=1)
        strength = 0.1 * (x - x.mean(0)).pow(2).mean()
        penalty = torch.diag(torch.cat([torch.full((x.shape[1],), float(strength)), torch.zeros(1)])) * len(x)
        weight = torch.linalg.solve(one.T @ one + penalty, one.T @ y)
        errors, own = [], []
        for text in found.texts:
            source_x = states[text.id][0][given]
            goal = torch.cat([source_x, torch.ones(len(source_x), 1)], dim=1) @ weight
            torch.testing.assert_close(text.goal[layer].double(), goal, rtol=1e-3, atol=1e-3)
            errors.append((states[text.id][1][layer] - goal).pow(2))
            own.append(states[text.id][1][layer])
        own_PD = torch.cat(own)
        variance = (own_PD - own_PD.mean(0)).pow(2).mean()
        assert float(found.variance[layer]) == pytest.approx(float(variance), rel=1e-4)
        assert found.described[layer] == {
            "source": given,
            "target": layer,
            "r2": pytest.approx(float(1 - torch.cat(errors).mean() / variance), abs=1e-3),
        }


def test_the_state_error_is_that_of_the_written_weights(tiny_source, tiny_target):
    """Texts of other lengths: a mean over each text's own positions, whatever it is padded to."""
    found = mapped(tiny_source, tiny_target, make_task(align=12))
    assert len({len(text.ids) for text in found.texts}) > 1
    at = located(tiny_source, tiny_target)
    delta = place(some_changes(at, tiny_target), at.target, tiny_target.dims)
    with tiny_target.loaded() as model, torch.no_grad():
        with injected(model, delta):
            got = state_errors(model, tiny_target, found.variance, found.texts)
        before = {name: w.clone() for name, w in model.state_dict().items()}
        write_(model, delta)
        for text, error in zip(found.texts, got, strict=True):
            states = hidden(model, text.ids)
            per_layer = [(states[i][1:] - text.goal[i]).pow(2).mean() / found.variance[i] for i in range(2)]
            assert float(error) == pytest.approx(float(sum(per_layer)) / 2, rel=1e-3)
        model.load_state_dict(before)


def test_the_gradient_of_the_state_error_is_that_of_finite_differences(tiny_source, tiny_target):
    found = mapped(tiny_source, tiny_target)
    at = located(tiny_source, tiny_target)
    changes = some_changes(at, tiny_target)
    with tiny_target.loaded() as model:

        def error(by: float, part: str, grad: bool = False):
            moved = {k: t.clone().requires_grad_() for k, t in changes.items()}
            shifted = {k: t + (by * directions[k] if k == part else 0) for k, t in moved.items()}
            with injected(model, place(shifted, at.target, tiny_target.dims)):
                total = state_errors(model, tiny_target, found.variance, found.texts).mean()
                if grad:
                    total.backward()
            return float(total.detach()), moved

        directions = {k: torch.randn(t.shape, generator=gen(7)) for k, t in changes.items()}
        for part in changes:
            _, moved = error(0.0, part, grad=True)
            slope = float((moved[part].grad * directions[part]).sum())
            step = 1e-2 / float(directions[part].norm())
            numeric = (error(step, part)[0] - error(-step, part)[0]) / (2 * step)
            assert numeric == pytest.approx(slope, rel=0.05, abs=1e-3)


@pytest.mark.parametrize("alignment", LABEL_FREE)
def test_training_lowers_what_is_trained_for(tiny_source, tiny_target, alignment):
    term = {"activations": "state_error", "moments": "moment_error"}[alignment]
    history = transfer(tiny_source, tiny_target, alignment, steps=30, schedule_steps=30, norm_weight=0.0).provenance[
        "history"
    ]
    assert sum(h[term] for h in history[-5:]) < 0.95 * sum(h[term] for h in history[:5])
    assert all(h["loss"] == pytest.approx(h[term]) for h in history)


# What is read


@pytest.mark.parametrize("alignment", LABEL_FREE)
def test_responses_of_the_align_split_are_not_read(tiny_source, tiny_target, tmp_path, alignment):
    """Nor may they move the boundary of the prompt: tokens are merged across it when both are encoded together."""
    for name, answer in (("a", "So the answer is {}."), ("b", "\n\nNo, {}"), ("c", "")):
        transfer(tiny_source, tiny_target, alignment, make_task(answer=answer)).save(tmp_path / name)
    assert len({(tmp_path / name).read_bytes() for name in "abc"}) == 1


def test_the_published_objective_reads_them(tiny_source, tiny_target):
    one, two = (transfer(tiny_source, tiny_target, "language", make_task(answer=a)) for a in ("it is {}.", "no, {}."))
    assert not torch.equal(values(one), values(two))


def test_prompts_are_read_for_activations_and_no_text_for_moments(tiny_source, tiny_target):
    def other(task: Task) -> Task:
        changed = [replace(e, prompt=f"What is {e.prompt}") for e in task.split("align")]
        return replace(task, load=lambda n: changed if n == "align" else task.split(n), _splits={})

    for alignment, same in (("activations", False), ("moments", True)):
        one, two = (transfer(tiny_source, tiny_target, alignment, t) for t in (make_task(), other(make_task())))
        assert torch.equal(values(one), values(two)) == same


def test_labels_and_steps_are_counted(tiny_source, tiny_target):
    task = make_task()
    for alignment, labels in (("language", 3 + 6), ("activations", 3), ("moments", 3)):
        found = transfer(tiny_source, tiny_target, alignment, task).provenance
        assert (found["labels"], found["steps"]) == (labels, 4)
    elsewhere = task.located_with([replace(e, id=f"x{e.id}", prompt=f"x{e.prompt}") for e in task.split("extract")])
    assert transfer(tiny_source, tiny_target, "language", elsewhere).provenance["labels"] == 3 + 3 + 6
    assert transfer(tiny_source, tiny_target, "moments", elsewhere).provenance["labels"] == 3


@pytest.mark.parametrize("alignment", LABEL_FREE)
def test_same_seed_same_bytes_and_both_models_unchanged(make_lm, tmp_path, alignment):
    source, target = make_lm("mistral", "source"), make_lm("llama", "target")
    with source.loaded() as large, target.loaded() as small:
        before = [{n: w.clone() for n, w in m.state_dict().items()} for m in (large, small)]
        for name, seed in (("a", 1), ("b", 1), ("c", 2)):
            transfer(source, target, alignment, seed=seed).save(tmp_path / name)
        for model, weights in zip((large, small), before, strict=True):
            assert all(torch.equal(w, weights[n]) for n, w in model.state_dict().items())
            assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


def test_micro_batches_and_checkpointing_do_not_change_the_step(tiny_source, tiny_target):
    whole = transfer(tiny_source, tiny_target, "activations", steps=1)
    for options in ({"micro_batch": 1}, {"gradient_checkpointing": True}):
        other = transfer(tiny_source, tiny_target, "activations", steps=1, **options)
        torch.testing.assert_close(values(other), values(whole), rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("alignment", LABEL_FREE)
def test_other_neurons_at_every_step_and_at_injection(tiny_source, tiny_target, alignment):
    delta = transfer(tiny_source, tiny_target, alignment, locate="per_example", injection_rate=0.5)
    assert len(delta.changes[0, "up"].index) == 28
    assert len(delta.provenance["history"]) == 4
    assert values(delta).isfinite().all()


def test_source_and_target_are_never_loaded_together(make_lm, monkeypatch, tmp_path):
    source, target = (LM(make_lm("llama", role).name, device="cpu") for role in ("source", "target"))
    held: list[str] = []
    load, release = LM._load, LM._release

    def loading(self):
        assert not held
        held.append(self.name)
        return load(self)

    def releasing(self):
        held.remove(self.name)
        release(self)

    monkeypatch.setattr(LM, "_load", loading)
    monkeypatch.setattr(LM, "_release", releasing)
    transfer(source, target, "activations")


def test_moments_need_no_forward_pass(make_lm, monkeypatch, tmp_path):
    source, target = (LM(make_lm("llama", role).name, device="cpu", memo=tmp_path) for role in ("source", "target"))
    attributions(source, target, make_task(), LatenConfig(), "plain")
    monkeypatch.setattr(LM, "_load", lambda self: pytest.fail("a model was loaded"))
    assert transfer(source, target, "moments").norm() > 0


# Control arms


def test_control_arms_differ(tiny_source, tiny_target):
    for alignment in LABEL_FREE:
        cfg = LatenConfig(**TUNED, alignment=alignment)
        setting = Setting(laten, tiny_source, tiny_target, make_task(), "plain")
        arms = ("real_source", "random_source", "shuffled_source", "self_source", "random_neurons")
        found = [values(arm_transfer(arm, setting, cfg, 0)) for arm in arms]
        for i, one in enumerate(found):
            assert one.isfinite().all()
            assert not any(one.shape == other.shape and torch.equal(one, other) for other in found[i + 1 :])


def test_no_source_has_nothing_to_train_for(tiny_target, tmp_path):
    for alignment in LABEL_FREE:
        reason = f"without a source there is nothing to train for: method.alignment is {alignment}"
        recipe = small_recipe(certificate={"arms": None}, method={"alignment": alignment})
        made = Certification(Run(recipe, tmp_path / alignment, ONE_PROCESS))
        assert made.absent == {"no_source": reason}
        assert made.left_out == []
        asked = small_recipe(certificate={"arms": ["no_source"]}, method={"alignment": alignment})
        with pytest.raises(ConfigError, match=f"certificate.arms: no_source is not to be had: {reason}"):
            Certification(Run(asked, tmp_path / alignment, ONE_PROCESS)).check()
        cfg = LatenConfig(**TUNED, alignment=alignment)
        with pytest.raises(ConfigError, match=f"no_source: {reason}"):
            laten.no_source(tiny_target, tiny_target, make_task(), cfg, gen(), style="plain")
    made = Certification(Run(small_recipe(certificate={"arms": None}), tmp_path / "language", ONE_PROCESS))
    assert made.absent == {}


# Refusals


def test_unequal_token_maps_are_refused_by_name(make_lm, tmp_path, tiny_source, tiny_target):
    folder = tmp_path / "other"
    folder.mkdir()
    for path in Path(tiny_source.name).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    content = json.loads((folder / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    one, two = sorted(vocab, key=vocab.get)[-2:]
    vocab[one], vocab[two] = vocab[two], vocab[one]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    other = LM(folder, device="cpu")
    with pytest.raises(UnsupportedModelError) as caught:
        transfer(other, tiny_target, "activations")
    assert "alignment on activations needs equal token maps" in str(caught.value)
    assert str(folder) in str(caught.value)
    assert repr(one) in str(caught.value)
    for alignment in ("language", "moments"):  # they need no such thing
        assert transfer(other, tiny_target, alignment, steps=1).norm() > 0


def test_prompts_without_labels_are_read_by_activations_alone(tiny_source, tiny_target):
    plain = make_task()
    more = [replace(e, id=f"more{i}", prompt=f"What about {i}?", response="Answer:") for i, e in enumerate(plain.split("align"))]  # fmt: skip
    task = replace(plain, load=lambda name: more if name == "unlabelled" else plain.split(name), _splits={})
    one, two = (transfer(tiny_source, tiny_target, "activations", task, unlabelled=n) for n in (0, 6))
    assert not torch.equal(values(one), values(two))
    assert two.provenance["labels"] == one.provenance["labels"] == 3
    with pytest.raises(DataError, match="method.unlabelled is 7, but there are 6 unlabelled prompts"):
        transfer(tiny_source, tiny_target, "activations", task, unlabelled=7)
    with pytest.raises(
        ConfigError, match="method.loss_on_prompt is true, but method.alignment is moments, whose loss reads no labels"
    ):
        laten.requires(tiny_source, tiny_target, LatenConfig(alignment="moments", loss_on_prompt=True))
    with pytest.raises(ConfigError, match="method.alignment is language: only `activations` reads prompts without labels"):  # fmt: skip
        transfer(tiny_source, tiny_target, "language", task, unlabelled=2)


def test_too_few_prompts(tiny_source, tiny_target):
    with pytest.raises(DataError, match="needs two align examples at least, found 1"):
        transfer(tiny_source, tiny_target, "activations", make_task(align=1))
    with pytest.raises(DataError, match="at least one align example"):
        transfer(tiny_source, tiny_target, "activations", make_task(align=0))
    assert transfer(tiny_source, tiny_target, "moments", make_task(align=0)).norm() > 0


def test_diverging_runs_stop_with_step_and_place(tiny_source, tiny_target):
    options = {"lr": 1e30, "norm_weight": 0.0, "steps": 8, "schedule_steps": 8}
    with pytest.raises(TrainingError, match=r"step \d+: the loss of example zorps\d is not finite"):
        transfer(tiny_source, tiny_target, "activations", **options)
    with pytest.raises(TrainingError, match=r"step \d+: the moments of \w+_proj in layer \d are not finite"):
        transfer(tiny_source, tiny_target, "moments", **options)


def test_goals_that_are_met_leave_nothing_to_do():
    own = torch.randn(4, 6, generator=gen())
    goals = {(0, "up"): Goal(own, own.std(), moments(own, own.std()))}
    hyper = torch.nn.ParameterDict({"up": torch.nn.Parameter(torch.zeros(1, 4, 6))})

    class Free(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = hyper

        def forward(self, _slices):
            return dict(self.parts.items())

    history = align(
        Free(), MomentLoss(lambda _step: goals), lambda _step: {},
        lambda changes, _step: Delta({(0, "up"): Lines(torch.arange(4), changes["up"][0], 0)}),
        Options(1, Schedule(1e-2, 1), 0.0),
    )  # fmt: skip
    assert history[0]["moment_error"] == pytest.approx(0, abs=1e-10)


# States through the handle


def test_control_states(make_lm):
    source = make_lm("llama", "source")
    ids = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]
    real, noise, mixed = (
        lm.residuals(ids, [0, 2]) for lm in (source, RandomSource(source, 0), ShuffledSource(source, 0))
    )
    for layer in (0, 2):
        assert real[layer].shape == noise[layer].shape == mixed[layer].shape == (9, 48)
        assert real[layer].dtype == torch.float32
        std, count = float(real[layer].std()), real[layer].numel()
        assert float(noise[layer].mean()) == pytest.approx(float(real[layer].mean()), abs=4 * std / count**0.5)
        assert float(noise[layer].std()) == pytest.approx(std, rel=4 / (2 * count) ** 0.5)
        assert not torch.equal(mixed[layer], real[layer])
        rows = [sorted(map(tuple, states[layer].tolist())) for states in (real, mixed)]
        assert rows[0] == rows[1]
    alone = RandomSource(source, 0).residuals(ids[1:2], [2])[2]
    scaled = [(x - x.mean()) / x.std() for x in (alone, noise[2][3:5])]
    torch.testing.assert_close(*scaled, rtol=0, atol=1e-3)
    order = [[real[at].tolist().index(row) for row in mixed[at].tolist()] for at in (0, 2)]
    assert order[0] != order[1]
    assert not torch.equal(noise[0], RandomSource(source, 1).residuals(ids, [0])[0])


def test_states_are_kept_in_the_memo(make_lm, tmp_path, monkeypatch, caplog):
    lm = LM(make_lm("llama", "source").name, device="cpu", memo=tmp_path)
    ids = [[5, 6, 7], [8, 9]]
    first = lm.residuals(ids, [1])
    (path,) = tmp_path.glob("residuals-*.safetensors")
    monkeypatch.setattr(LM, "_load", lambda self: pytest.fail("loaded again"))
    assert torch.equal(lm.residuals(ids, [1])[1], first[1])
    assert lm.residuals(ids, [0, 2]).keys() == {0, 2}  # all layers are there
    monkeypatch.undo()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert torch.equal(lm.residuals(ids, [2])[2], LM(lm.name, device="cpu").residuals(ids, [2])[2])
    assert "is damaged; made anew" in caplog.text


# The chain


@pytest.mark.usefixtures("plain_page")
@pytest.mark.parametrize("alignment", LABEL_FREE)
def test_the_whole_chain(tmp_path, alignment):
    recipe = load_recipe(f"nano_laten_{alignment}", ["method.steps=3", "evaluate.limit=1", "evaluate.arms=[result]"])
    found = plan(Run(recipe, tmp_path / "plan", ONE_PROCESS))
    stages = [row["stage"] for row in found.costs]
    assert ("states of the source" in stages) == (alignment == "activations")
    assert "align, 3 steps" in stages
    execute(recipe, tmp_path / "run", ONE_PROCESS)
    kept = sorted(path.name.split("-")[0] for path in (tmp_path / "run" / "neurons").glob("*.safetensors"))
    assert kept == ["attribution"] * 2 + (["residuals"] * 2 if alignment == "activations" else [])
