"""Exported checkpoints: plain transformers loads them, and only the located slices differ."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import pkt
from pkt.errors import DataError, ShapeError, UnsupportedModelError
from pkt.inject.apply import injected
from pkt.inject.changes import Dense, Lines, LowRank
from pkt.inject.delta import Delta
from pkt.inject.export import export
from pkt.models.lm import LM

IDS = torch.arange(3, 23).view(2, 10)


def small_delta(lm, size=0.1, seed=0):
    d, gen = lm.dims, torch.Generator().manual_seed(seed)
    return Delta(
        {
            (0, "up"): Lines(torch.tensor([1, 5]), torch.randn(2, d.width, generator=gen) * size, 0),
            (1, "down"): Lines(torch.tensor([0, 7, 9]), torch.randn(3, d.width, generator=gen) * size, 1),
            (1, "v"): Lines(torch.tensor([2]), torch.randn(1, d.width, generator=gen) * size, 0),
        }
    )


def weights_of(folder):
    return [path.read_bytes() for path in sorted(folder.glob("*.safetensors"))]


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.fixture
def sharded(make_lm, tmp_path):
    """The target in several shards, in any dtype."""

    def make(dtype=torch.float32, family="llama", **more):
        lm = make_lm(family, "target", **more)
        folder = tmp_path / "sharded"
        with lm.loaded() as model:
            model.to(dtype).save_pretrained(folder, max_shard_size="20KB")
        lm.tokenizer.save_pretrained(folder)
        assert len(list(folder.glob("model-*.safetensors"))) > 2
        return LM(folder, device="cpu")

    return make


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma2", "phi3"])
def test_exported_equals_hooked(make_lm, tmp_path, family):
    lm = make_lm(family, "target")
    delta = small_delta(lm)
    export(delta, lm, tmp_path / "out")
    with lm.loaded() as model, injected(model, delta):
        hooked = logits(model)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(exported), hooked, rtol=0, atol=2e-4)
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "out")("a flurb")["input_ids"] == lm.tokenizer("a flurb")["input_ids"]
    )


def test_only_the_located_lines_differ(sharded, tmp_path):
    lm = sharded()
    delta = small_delta(lm)
    export(delta, lm, tmp_path / "out")
    changed = {f"model.layers.{i}.{m}.weight": c for (i, _), c, m in zip(
        delta.changes, delta.changes.values(), ("mlp.up_proj", "mlp.down_proj", "self_attn.v_proj"), strict=True)}  # fmt: skip
    seen = set()
    for shard in lm.checkpoint.shards:
        before, after = load_file(shard), load_file(tmp_path / "out" / shard.name)
        assert before.keys() == after.keys()
        for name in before:
            if name not in changed:
                assert torch.equal(before[name], after[name])
                continue
            seen.add(name)
            difference = after[name] - before[name]
            c = changed[name]
            inside = difference[c.index] if c.axis == 0 else difference.T[c.index]
            torch.testing.assert_close(inside, c.values, rtol=0, atol=1e-6)
            assert int((difference != 0).sum()) <= c.values.numel()
    assert seen == changed.keys()


def test_what_describes_the_old_weights_is_left_behind(sharded, tmp_path):
    lm = sharded()
    for name in ("card.json", "README.md", "generation_config.json"):
        (lm.checkpoint.folder / name).write_text("{}")
    export(small_delta(lm), lm, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "generation_config.json" in names
    assert not {"card.json", "README.md"} & names


def test_zero_delta_gives_the_same_files(sharded, tmp_path):
    lm = sharded()
    kept = export(small_delta(lm) * 0.0, lm, tmp_path / "out")
    for shard in lm.checkpoint.shards:
        before, after = load_file(shard), load_file(tmp_path / "out" / shard.name)
        assert all(torch.equal(before[name], after[name]) for name in before)
    assert (kept.kept_share, kept.kept_cosine) == (1.0, 1.0)


def test_small_changes_in_bfloat16_stay_in_float32(sharded, tmp_path):
    """A relative change of 2.7e-4 survives bfloat16 in about a fifth of the entries: `auto` keeps float32 instead."""
    lm = sharded(torch.bfloat16)
    delta = small_delta(lm, size=2.7e-4 * 0.2)
    kept = export(delta, lm, tmp_path / "auto")
    assert (kept.dtype, kept.target_dtype) == ("float32", "bfloat16")
    assert kept.rounded_cosine < 0.9
    assert kept.kept_cosine > 0.999
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "auto")
    assert model.dtype == torch.float32
    wide = AutoModelForCausalLM.from_pretrained(lm.name, dtype=torch.float32)
    got = model.model.layers[0].mlp.up_proj.weight[[1, 5]] - wide.model.layers[0].mlp.up_proj.weight[[1, 5]]
    torch.testing.assert_close(got, delta.changes[0, "up"].values, rtol=1e-2, atol=1e-7)

    rounded = export(delta, lm, tmp_path / "target", dtype="target")
    assert rounded.dtype == "bfloat16"
    assert rounded.kept_share < 0.4
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "target").dtype == torch.bfloat16


def test_large_changes_in_bfloat16_stay_in_bfloat16(sharded, tmp_path):
    lm = sharded(torch.bfloat16)
    kept = export(small_delta(lm, size=1.0), lm, tmp_path / "out")
    assert kept.dtype == "bfloat16"
    assert 0.99 <= kept.kept_cosine < 1
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_tied_embeddings_and_biases(make_lm, tmp_path):
    lm = make_lm("qwen2", "target", tie_word_embeddings=True)
    assert lm.config.tie_word_embeddings
    assert "lm_head.weight" not in lm.checkpoint.files
    delta = small_delta(lm)
    export(delta, lm, tmp_path / "out")
    with lm.loaded() as model, injected(model, delta):
        hooked = logits(model)
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), hooked, rtol=0, atol=2e-4
    )


@pytest.fixture
def with_head(make_lm, tmp_path):
    """A tied target whose files hold the LM head too, as those of some models on the hub do, times a factor."""

    def make(factor=1.0):
        lm = make_lm("qwen3", "target", tie_word_embeddings=True)
        folder = tmp_path / f"head-{factor}"
        shutil.copytree(lm.checkpoint.folder, folder)
        tensors = load_file(folder / "model.safetensors")
        assert "lm_head.weight" not in tensors
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * factor
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return lm, LM(folder, device="cpu")

    return make


def test_a_head_that_is_tied_and_stored_changes_with_the_embedding(with_head, tmp_path):
    once, lm = with_head()
    assert lm.parameters() == once.parameters()
    delta = Delta({(None, "embed"): Dense(torch.randn(lm.shape(None, "embed")) * 0.1)})
    kept = export(delta, lm, tmp_path / "out")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert exported.lm_head.weight is exported.model.embed_tokens.weight
    with lm.loaded() as model, injected(model, delta):
        torch.testing.assert_close(logits(exported), logits(model), rtol=0, atol=2e-4)
    assert kept.changed_tensors == 2


def test_a_head_that_is_tied_and_stored_as_another_is_refused(with_head):
    _, lm = with_head(1.5)
    with (
        pytest.raises(UnsupportedModelError, match="ties embedding and LM head, but its files hold two that differ"),
        lm.loaded(),
    ):
        pass


def test_nothing_is_left_behind_when_it_fails(tiny_target, tmp_path):
    with pytest.raises(ShapeError):
        export(Delta({(0, "up"): Lines(torch.tensor([999]), torch.zeros(1, 32), 0)}), tiny_target, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("keep")
    with pytest.raises(DataError, match="exists and holds files"):
        export(small_delta(tiny_target), tiny_target, tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "keep"


@pytest.mark.parametrize("write", [pkt.export, pkt.export_adapter])
def test_no_model_is_replaced_unasked(tiny_target, tmp_path, write):
    low = Delta({(0, "up"): LowRank(torch.ones(2, 32), torch.ones(56, 2))})
    write(low, tiny_target, tmp_path / "out")
    before = weights_of(tmp_path / "out")
    with pytest.raises(DataError, match="exists and holds files; give a new folder, or pass overwrite=True"):
        write(low * 2.0, tiny_target, tmp_path / "out")
    assert weights_of(tmp_path / "out") == before
    write(low * 2.0, tiny_target, tmp_path / "out", overwrite=True)
    assert weights_of(tmp_path / "out") != before
    own = LM(shutil.copytree(tiny_target.checkpoint.folder, tmp_path / "own"), device="cpu")
    with pytest.raises(DataError, match="own holds the target itself"):
        write(low, own, tmp_path / "own", overwrite=True)


@pytest.mark.parametrize("write", [pkt.export, pkt.export_adapter])
def test_a_kill_while_an_earlier_export_is_removed_leaves_no_half(tiny_target, tmp_path, monkeypatch, write):
    low = Delta({(0, "up"): LowRank(torch.ones(2, 32), torch.ones(56, 2))})
    write(low, tiny_target, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}

    def killed(folder, **_):
        for path in Path(folder).glob("*config.json"):
            path.unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            write(low, tiny_target, tmp_path / "out", overwrite=True)
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    write(low, tiny_target, tmp_path / "out", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_single_file_counts_where_there_is_an_index_too(tiny_target, tmp_path):
    """As transformers has it: another `save_pretrained` into the same folder leaves the one or the other."""
    folder = shutil.copytree(tiny_target.name, tmp_path / "model")
    with tiny_target.private("float32") as model, torch.no_grad():
        model.lm_head.weight.add_(1)
        model.save_pretrained(folder, max_shard_size="10KB")
    lm = LM(folder, device="cpu")
    assert (folder / "model.safetensors").is_file()
    assert (folder / "model.safetensors.index.json").is_file()
    with lm.loaded() as model:
        assert torch.equal(model.lm_head.weight, lm.tensor("lm_head.weight"))
        export(Delta({}), lm, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").glob("*safetensors*")] == ["model.safetensors"]


def test_tensors_of_several_dtypes_are_all_kept(make_lm, tmp_path):
    """Matrices in bfloat16 and norms in float32: what the last changed tensor is stored in decides nothing."""
    lm = LM(shutil.copytree(make_lm("llama", "target").checkpoint.folder, tmp_path / "mixed"), device="cpu")
    tensors = load_file(tmp_path / "mixed" / "model.safetensors")
    tensors = {name: t if "norm" in name else t.bfloat16() for name, t in tensors.items()}
    save_file(tensors, tmp_path / "mixed" / "model.safetensors", {"format": "pt"})
    delta = Delta({**(small_delta(lm) * 1e-4).changes, (None, "final_norm"): Dense(torch.full((32,), 1e-5))})
    for dtype in ("auto", "float32"):
        kept = export(delta, lm, tmp_path / dtype, dtype=dtype)
        assert kept.kept_cosine > 0.999
        assert (kept.dtype, kept.target_dtype) == ("float32", "bfloat16")
        written = load_file(tmp_path / dtype / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
        assert written.dtype == torch.float32
    rounded = export(delta, lm, tmp_path / "target", dtype="target")
    assert rounded.kept_cosine == kept.rounded_cosine < 0.9


@pytest.mark.parametrize(
    ("recipe_dtype", "scored"), [("bfloat16", "float32"), ("float32", "float32"), ("auto", "float32")]
)
def test_target_and_result_are_scored_in_the_dtype_of_the_export(tmp_path, recipe_dtype, scored):
    """A narrower dtype of the recipe must not round the result again, nor the target be scored in another one."""
    from pkt.recipe_files import load_recipe
    from pkt.run import Run

    run = Run(load_recipe("nano_tuned", [f"dtype={recipe_dtype}"]), tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "export.json").write_text('{"dtype": "float32", "target_dtype": "bfloat16"}')
    assert run._scored("target").dtype == run._scored("result").dtype == scored
    assert run._scored("source").dtype == recipe_dtype
