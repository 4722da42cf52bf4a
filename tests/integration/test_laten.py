"""LaTen as a method: shapes, counts, determinism, both models unchanged, the loss it minimises."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch.nn import functional

from pkt.align.alignment import dependence
from pkt.errors import ConfigError, DataError, TrainingError, UnsupportedModelError
from pkt.extract.location import attributions
from pkt.extract.neurons import num_chosen
from pkt.methods.laten import LatenConfig, laten
from pkt.models.controls import RandomSource
from pkt.models.families import KINDS
from pkt.tasks.base import Example, Task
from pkt.tasks.formats import FORMATS
from pkt.tasks.losses import encode_all, example_losses


def examples(split: str, count: int) -> list[Example]:
    return [
        Example(
            f"{split}{i}", f"How much are {i} {split}?", f"Answer: So the answer is {i * 7}.", str(i * 7), f"{split}{i}"
        )
        for i in range(1, count + 1)
    ]


def make_task(extract=3, align=5, test=2) -> Task:
    splits = {
        "extract": examples("flurbs", extract),
        "align": examples("zorps", align),
        "test": examples("blicks", test),
    }
    return Task("tiny", FORMATS["gsm8k"], lambda name: splits[name], "test")


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


TUNED = {"init": "fan_in", "lr": 1e-2, "norm_weight": 1.0, "steps": 4, "schedule_steps": 4}


def transfer(source, target, task=None, seed=0, **options):
    return laten(source, target, task or make_task(), LatenConfig(**{**TUNED, **options}), gen(seed), style="plain")


@pytest.mark.parametrize("families", [("llama", "llama"), ("qwen2", "qwen2"), ("qwen3", "llama"), ("mistral", "qwen3")])
def test_delta_fits_and_both_models_are_unchanged(make_lm, families):
    source, target = make_lm(families[0], "source"), make_lm(families[1], "target")
    digests = source.digest, target.digest
    with target.loaded() as model, source.loaded() as large:
        before = {k: v.clone() for m in (model, large) for k, v in m.state_dict(prefix=str(id(m))).items()}
        delta = transfer(source, target)
        after = {k: v for m in (model, large) for k, v in m.state_dict(prefix=str(id(m))).items()}
        assert all(torch.equal(v, before[k]) for k, v in after.items())
        assert all(p.grad is None and not p.requires_grad for p in model.parameters())
        assert not model.training
    for lm, digest in zip((source, target), digests, strict=True):
        del lm.checkpoint.__dict__["digest"]
        assert lm.digest == digest
    assert len(list(delta.tensors(target))) == 4 * target.dims.layers
    assert delta.norm() > 0
    losses = [h["cross_entropy"] for h in delta.provenance["history"]]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("rate", [0.1, 0.3, 1.0])
def test_transfer_rate_gives_the_number_of_lines(tiny_source, tiny_target, rate):
    delta = transfer(tiny_source, tiny_target, transfer_rate=rate, steps=1)
    dims = tiny_target.dims
    num = {kind: num_chosen(dims.neurons(kind), rate, kind) for kind in KINDS}
    for layer in range(dims.layers):
        assert len(delta.changes[layer, "up"].index) == len(delta.changes[layer, "down"].index) == num["ffn"]
        columns = delta.changes[layer, "o"].index
        assert len(columns) == num["attention"]
        assert set(delta.changes[layer, "v"].index.tolist()) == {dims.v_row(j) for j in columns.tolist()}


def test_rate_at_injection_may_differ(tiny_source, tiny_target):
    small, large = (transfer(tiny_source, tiny_target, injection_rate=r) for r in (0.1, 0.5))
    assert len(small.changes[0, "up"].index) == 5
    assert len(large.changes[0, "up"].index) == 28
    shared = torch.isin(large.changes[0, "up"].index, small.changes[0, "up"].index)
    torch.testing.assert_close(
        large.changes[0, "up"].values[shared], small.changes[0, "up"].values, rtol=1e-4, atol=1e-6
    )


def test_same_seed_same_bytes(tiny_source, tiny_target, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        transfer(tiny_source, tiny_target, seed=seed).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


def test_micro_batches_and_checkpointing_do_not_change_the_step(tiny_source, tiny_target):
    whole = transfer(tiny_source, tiny_target)
    for options in ({"micro_batch": 1}, {"micro_batch": 4}, {"gradient_checkpointing": True}):
        other = transfer(tiny_source, tiny_target, **options)
        for key, change in whole.changes.items():
            torch.testing.assert_close(other.changes[key].values, change.values, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(("extract", "align"), [(1, 1), (1, 20), (3, 2)])
def test_any_number_of_examples(tiny_source, tiny_target, extract, align):
    delta = transfer(tiny_source, tiny_target, make_task(extract, align), schedule_steps=None, steps=5)
    assert len(delta.provenance["history"]) == 5


def test_per_example_locates_anew_at_every_step(tiny_source, tiny_target, monkeypatch):
    """Step t uses extract example t mod N, injection one drawn example."""
    module = importlib.import_module("pkt.methods.laten")
    task, cfg = make_task(), LatenConfig(**TUNED, locate="per_example")
    of_source, _ = attributions(tiny_source, tiny_target, task, cfg, "plain")
    singles = [of_source.example(i).neurons["ffn"] for i in range(3)]
    used, locate = [], module.locate

    def recorded(source, target, scores, num, pairing):
        used.append(next(i for i, single in enumerate(singles) if torch.equal(single, scores[0].neurons["ffn"])))
        return locate(source, target, scores, num, pairing)

    monkeypatch.setattr(module, "locate", recorded)
    delta = transfer(tiny_source, tiny_target, task, locate="per_example")
    assert used[:4] == [0, 1, 2, 0]
    assert len(used) == 5
    for kind, described in delta.provenance["layers"].items():
        assert described["examples"] == 1
        assert described["source_scores"] == of_source.example(used[-1]).summed().layers[kind][0].tolist()


def test_published_values_start_from_almost_nothing(tiny_source, tiny_target):
    delta = laten(tiny_source, tiny_target, make_task(), LatenConfig(steps=1), gen(), style="plain")
    assert 0 < delta.norm() < 1e-2


def test_loss_is_the_mean_over_examples_of_the_mean_over_response_tokens(tiny_target):
    task = make_task()
    for prompt_too in (False, True):
        batch = encode_all(task.split("align"), "plain", tiny_target, loss_on_prompt=prompt_too)
        with tiny_target.loaded() as model, torch.no_grad():
            got = example_losses(model, tiny_target, batch)
            for encoded, example, loss in zip(batch, task.split("align"), got, strict=True):
                prompt = tiny_target.tokenizer(example.prompt + "\n")["input_ids"]
                ids = tiny_target.tokenizer(example.prompt + "\n" + example.response)["input_ids"] + [
                    tiny_target.tokenizer.eos_token_id
                ]
                assert encoded.ids == ids
                logits = model(torch.tensor([ids])).logits[0, :-1]
                start = 1 if prompt_too else len(prompt)
                want = functional.cross_entropy(logits[start - 1 :], torch.tensor(ids[start:]))
                assert float(loss) == pytest.approx(float(want), rel=1e-4)


def test_a_diverging_run_stops_with_step_and_example(tiny_source, tiny_target):
    with pytest.raises(TrainingError, match=r"step \d+: the loss of example .*(flurbs|zorps).* is not finite"):
        transfer(tiny_source, tiny_target, lr=1e30, norm_weight=0.0, steps=8, schedule_steps=8)


def test_pairs_that_lack_something_are_refused(tiny_source, tiny_target):
    with pytest.raises(UnsupportedModelError, match="has 2 layers, but the target has 3"):
        transfer(tiny_target, tiny_source)
    with pytest.raises(ConfigError, match="selects no attention neuron"):
        transfer(tiny_source, tiny_target, transfer_rate=0.02)
    with pytest.raises(ConfigError, match="steps is 4, but method.schedule_steps ends the schedule at 2"):
        transfer(tiny_source, tiny_target, schedule_steps=2)
    with pytest.raises(DataError, match="at least one align example"):
        transfer(tiny_source, tiny_target, make_task(align=0))


def test_overlapping_splits_are_refused(tiny_source, tiny_target):
    shared = examples("flurbs", 2)
    task = Task("tiny", FORMATS["gsm8k"], lambda name: shared if name != "test" else examples("blicks", 1), "test")
    with pytest.raises(DataError, match="splits extract and align overlap: examples flurbs1 and flurbs1"):
        transfer(tiny_source, tiny_target, task)


def test_a_delta_that_is_not_finite_is_never_returned(tiny_source, tiny_target):
    """One step at an absurd rate: the loss before it was fine, the delta after it is not."""
    with pytest.raises(TrainingError, match="the delta is not finite after step 1; lower method.lr"):
        transfer(tiny_source, tiny_target, lr=1e30, steps=1, schedule_steps=1)


def test_checkpointing_recomputes_and_leaves_dropout_off(make_lm):
    source, target = make_lm("llama", "source"), make_lm("llama", "target", attention_dropout=0.5)
    calls, seen = [], []
    with target.loaded() as model:
        norm = model.model.layers[0].input_layernorm
        norm.register_forward_hook(lambda *_: calls.append(model.model.layers[0].self_attn.training))
        for wanted in (False, True):
            calls.clear()
            delta = transfer(source, target, steps=2, schedule_steps=2, gradient_checkpointing=wanted)
            seen.append((len(calls), [h["cross_entropy"] for h in delta.provenance["history"]]))
            assert not any(calls)
            assert not model.training
    (plain_calls, plain), (calls_again, again) = seen
    assert calls_again > plain_calls
    assert again == pytest.approx(plain, rel=1e-4)


def test_source_dependence_is_measured_and_changes_nothing(tiny_source, tiny_target, tmp_path):
    plain, measured = (transfer(tiny_source, tiny_target, source_dependence=wanted) for wanted in (False, True))
    for key, change in plain.changes.items():
        for name, tensor in change.tensors().items():
            assert torch.equal(tensor, measured.changes[key].tensors()[name])
    history = measured.provenance["history"]
    assert len(history) == 4
    for before, step in zip(plain.provenance["history"], history, strict=True):
        assert step.keys() - before.keys() == {"source_cosine", "noise_norm_ratio"}
        assert {key: step[key] for key in before} == before
        assert -1 < step["source_cosine"] < 0.999
        assert step["noise_norm_ratio"] > 0


def test_dependence_is_a_cosine_and_a_ratio_of_norms(tiny_source, tiny_target):
    delta, other = (transfer(tiny_source, tiny_target, seed=seed) for seed in (0, 1))
    assert dependence(delta, delta) == pytest.approx({"source_cosine": 1.0, "noise_norm_ratio": 1.0})
    assert dependence(delta, delta * -3.0) == pytest.approx({"source_cosine": -1.0, "noise_norm_ratio": 3.0})
    flat = [torch.cat([c.values.flatten() for c in d.changes.values()]) for d in (delta, other)]
    assert dependence(delta, other) == pytest.approx(
        {
            "source_cosine": float(functional.cosine_similarity(flat[0], flat[1], dim=0)),
            "noise_norm_ratio": float(flat[1].norm() / flat[0].norm()),
        },
        rel=1e-3,
    )
    assert dependence(delta, delta * 0.0) == {"source_cosine": 0.0, "noise_norm_ratio": 0.0}
    assert dependence(delta * 0.0, delta) == {"source_cosine": 0.0, "noise_norm_ratio": 0.0}


def test_the_noise_to_compare_with_is_not_the_noise_of_the_arm(tiny_source, tiny_target):
    """A network fed with `random_source` depends on it as much as on any noise."""
    cosines = []
    for seed in (0, 1):
        delta = transfer(RandomSource(tiny_source, seed), tiny_target, source_dependence=True, steps=1)
        cosines.append(delta.provenance["history"][0]["source_cosine"])
    assert cosines[0] == pytest.approx(cosines[1], abs=0.3)


def test_without_a_source_the_lines_are_the_same_and_start_from_zero(tiny_source, tiny_target):
    options = {**TUNED, "injection_rate": 0.5, "transfer_rate": 0.1}
    real = transfer(tiny_source, tiny_target, **options)
    free = laten.no_source(tiny_target, tiny_target, make_task(), LatenConfig(**options), gen(), style="plain")
    assert free.changes.keys() == real.changes.keys()
    trained = transfer(tiny_source, tiny_target, **{**options, "injection_rate": 0.1})
    for key, change in free.changes.items():
        assert torch.equal(change.index, real.changes[key].index)
        lines = torch.isin(change.index, trained.changes[key].index)
        assert (change.values[lines].abs().sum(1) > 0).all()
        if key[1] in ("up", "down", "o"):
            assert (change.values[~lines] == 0).all()  # injected, but never trained
    first = [d.provenance["history"][0] for d in (free, real)]
    assert first[0]["penalty"] == 0
    assert free.provenance["trained_parameters"] == 2 * 32 * (5 + 5 + 3 + 3)
    assert real.provenance["trained_parameters"] != free.provenance["trained_parameters"]


def test_random_neurons_leave_the_layers(tiny_source, tiny_target):
    real, chance = (transfer(tiny_source, tiny_target, locator=by) for by in ("logprob_gain", "random"))
    again, other = (transfer(tiny_source, tiny_target, locator="random", seed=seed) for seed in (0, 1))
    maps = [{k: v["map"] for k, v in d.provenance["layers"].items()} for d in (real, chance, other)]
    assert maps[0] == maps[1] == maps[2]

    def index(delta):
        return [c.index.tolist() for _, c in sorted(delta.changes.items())]

    assert index(chance) == index(again)
    assert index(chance) != index(real)
    assert index(chance) != index(other)
    assert [len(i) for i, key in zip(index(chance), sorted(chance.changes), strict=True) if key[1] != "v"] == [
        len(i) for i, key in zip(index(real), sorted(real.changes), strict=True) if key[1] != "v"
    ]
