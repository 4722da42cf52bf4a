"""`Delta`: hooks equal weights, sums, scaling, files, and shapes that do not fit."""

from __future__ import annotations

import resource

import pytest
import torch

from pkt.errors import DataError, PktError, ShapeError, UnsupportedModelError
from pkt.inject.apply import injected, write_
from pkt.inject.changes import Dense, Lines, LowRank
from pkt.inject.delta import Delta
from pkt.inject.ranges import weights_under
from pkt.stages import peak_bytes


@pytest.fixture
def delta(tiny_target) -> Delta:
    d, gen = tiny_target.dims, torch.Generator().manual_seed(0)

    def r(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=gen) * 0.1

    return Delta(
        {
            (0, "up"): Lines(torch.tensor([5, 1, 50]), r(3, d.width), 0),
            (0, "down"): Lines(torch.tensor([7, 0]), r(2, d.width), 1),
            (1, "v"): Lines(torch.tensor([3]), r(1, d.width), 0),
            (1, "o"): LowRank(r(2, d.attention), r(d.width, 2)),
            (1, "gate"): Dense(r(d.ffn, d.width)),
        },
        {"seed": 0},
    )


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


IDS = torch.arange(3, 23).view(2, 10)


def test_hooks_equal_weights_and_leave_no_trace(tiny_target, delta):
    with tiny_target.loaded() as model:
        before = {k: v.clone() for k, v in model.state_dict().items()}
        plain = logits(model, IDS)
        with injected(model, delta):
            hooked = logits(model, IDS)
        assert torch.equal(logits(model, IDS), plain)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        write_(model, delta)
        written = logits(model, IDS)
    assert (hooked - plain).abs().max() > 0.1
    torch.testing.assert_close(hooked, written, rtol=0, atol=2e-4)


def test_hooks_are_removed_after_an_error(tiny_target, delta):
    with tiny_target.loaded() as model:
        plain = logits(model, IDS)
        with pytest.raises(KeyError), injected(model, delta):
            raise KeyError
        assert torch.equal(logits(model, IDS), plain)


def test_gradient_reaches_the_delta_and_no_weight(tiny_target, delta):
    values = delta.changes[0, "down"].values.requires_grad_()
    with tiny_target.loaded() as model, injected(model, delta):
        model(IDS).logits.square().sum().backward()
        assert all(p.grad is None for p in model.parameters())
    assert values.grad is not None
    assert values.grad.abs().sum() > 0


def test_zero_delta_changes_nothing(tiny_target, delta):
    with tiny_target.loaded() as model:
        plain = logits(model, IDS)
        with injected(model, delta * 0.0):
            assert torch.equal(logits(model, IDS), plain)


def test_sum_scale_and_norm(delta):
    double = delta + delta
    assert double.norm() == pytest.approx(2 * delta.norm(), rel=1e-5)
    assert (delta * 3.0).norm() == pytest.approx(3 * delta.norm(), rel=1e-5)
    other = Delta({(0, "up"): Lines(torch.tensor([0]), torch.zeros(1, 32), 0)})
    with pytest.raises(ShapeError, match="different"):
        delta + other


def test_file_round_trip_is_exact_and_repeats(delta, tmp_path):
    delta.save(tmp_path / "a.safetensors")
    delta.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    found = Delta.load(tmp_path / "a.safetensors")
    assert found.provenance == {"seed": 0}
    assert found.changes.keys() == delta.changes.keys()
    for key, change in delta.changes.items():
        for name, tensor in change.tensors().items():
            assert torch.equal(found.changes[key].tensors()[name], tensor)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o444 == 0o444


def test_foreign_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such delta"):
        Delta.load(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(DataError, match="not a safetensors file"):
        Delta.load(tmp_path / "text.safetensors")


def test_a_delta_that_does_not_fit_names_the_tensor(tiny_target):
    wrong = Delta({(0, "up"): Lines(torch.tensor([999]), torch.zeros(1, 32), 0)})
    with (
        pytest.raises(ShapeError, match=r"layers\.0\.mlp\.up_proj"),
        tiny_target.loaded() as model,
        injected(model, wrong),
    ):
        pass
    with pytest.raises(ShapeError, match=r"layers\.0\.mlp\.up_proj\.weight"):
        list(wrong.tensors(tiny_target))


@pytest.fixture
def whole(tiny_target) -> Delta:
    """Changes of what is no linear map within a layer: embedding, final norm, unembedding."""
    d, gen = tiny_target.dims, torch.Generator().manual_seed(1)

    def r(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=gen) * 0.1

    return Delta(
        {
            (None, "embed"): Lines(torch.tensor([4, 3, 9]), r(3, d.width), 0),
            (None, "final_norm"): Dense(r(d.width)),
            (None, "unembed"): Dense(r(d.vocab, d.width)),
        }
    )


def test_embeddings_and_norms_are_replaced_and_put_back(tiny_target, whole, delta):
    with tiny_target.loaded() as model:
        before = {k: v.clone() for k, v in model.state_dict().items()}
        at = {k: v.data_ptr() for k, v in model.state_dict().items()}
        plain = logits(model, IDS)

        def as_before() -> None:
            assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
            assert {k: v.data_ptr() for k, v in model.state_dict().items()} == at
            assert torch.equal(logits(model, IDS), plain)

        hooked = {}
        for key in whole.changes:
            with injected(model, Delta({key: whole.changes[key]})):
                hooked[key] = logits(model, IDS)
            as_before()
        with injected(model, whole), injected(model, delta), injected(model, whole):
            assert not torch.equal(logits(model, IDS), plain)
        as_before()
        with pytest.raises(KeyError), injected(model, whole):
            raise KeyError
        as_before()
        with injected(model, whole + delta):
            hooked["all"] = logits(model, IDS)
    for key, found in hooked.items():
        assert (found - plain).abs().max() > 0.1
        with tiny_target.loaded() as model:
            write_(model, whole + delta if key == "all" else Delta({key: whole.changes[key]}))
            torch.testing.assert_close(found, logits(model, IDS), rtol=0, atol=5e-4)


@pytest.mark.parametrize("part", ["embed", "final_norm"])
def test_no_gradient_flows_through_an_embedding_or_a_norm(tiny_target, whole, part):
    learnt = Delta({key: c.map(lambda t: t.clone().requires_grad_()) for key, c in whole.changes.items()})
    with tiny_target.loaded() as model:
        before = {k: v.clone() for k, v in model.state_dict().items()}
        fixed = Delta({(None, "embed"): whole.changes[None, "embed"], (None, part): learnt.changes[None, part]})
        with pytest.raises(UnsupportedModelError, match="no gradient flows through a change"), injected(model, fixed):
            pass
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        with injected(model, Delta({(None, "unembed"): learnt.changes[None, "unembed"]})):
            model(IDS).logits.square().sum().backward()
    assert learnt.changes[None, "unembed"].values.grad.abs().sum() > 0


def test_lines_of_a_norm_are_refused(tiny_target):
    """A norm's weight has no rows and columns."""
    wrong = Delta({(None, "final_norm"): Lines(torch.tensor([1]), torch.zeros(1, tiny_target.dims.width), 0)})
    with pytest.raises(ShapeError, match=r"norm"), tiny_target.loaded() as model, injected(model, wrong):
        pass


def test_tied_embeddings_are_injected_as_written_or_refused(make_lm, whole):
    """One stored matrix in two places: a change of either name is one of both."""
    tied = make_lm("llama", "target", tie_word_embeddings=True)
    for parts in (["embed"], ["unembed"], ["embed", "unembed"]):
        change = Delta({(None, part): whole.changes[None, part] for part in parts})
        try:
            with tied.loaded() as model, injected(model, change):
                hooked = logits(model, IDS)
        except PktError:
            continue
        with tied.loaded() as model:
            write_(model, change)
            torch.testing.assert_close(hooked, logits(model, IDS), rtol=0, atol=5e-4)


@pytest.mark.parametrize("part", ["up", "gate", "down", "v", "k", "o"])
@pytest.mark.parametrize("axis", [0, 1])
def test_the_weights_under_lines_are_those_lines(tiny_target, part, axis):
    index = torch.tensor([2, 0])
    height, width = tiny_target.shape(1, part)
    change = Lines(index, torch.ones(2, width if axis == 0 else height), axis)
    with tiny_target.loaded() as model:
        weight = model.get_submodule(tiny_target.family.path(1, part)).weight.index_select(axis, index)
    found = weights_under(tiny_target, (1, part), change)
    assert float(found.norm()) == pytest.approx(float(weight.norm()))
    assert found.numel() == change.size()


def test_peak_memory_is_that_of_all_gpus_or_of_the_process(monkeypatch):
    assert peak_bytes() == resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda gpu: (3, 4)[gpu])
    assert peak_bytes() == 7
