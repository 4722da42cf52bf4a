"""Deltas as PEFT adapters, and back; copies with embeddings apart."""

from __future__ import annotations

import json
import shutil
import warnings

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from test_laten import make_task
from test_laten import transfer as laten_transfer
from test_lora_methods import IDS, run
from transformers import AutoModelForCausalLM

from pkt.errors import DataError, ShapeError, UnsupportedModelError
from pkt.inject.adapter import export_adapter
from pkt.inject.adapter_reading import read_adapter
from pkt.inject.apply import injected
from pkt.inject.changes import Dense, LowRank
from pkt.inject.delta import Delta
from pkt.inject.untie import untie
from pkt.models.lm import LM


@pytest.fixture
def adapter(tiny_source, tiny_target, tmp_path):
    delta = run("seeking", tiny_source, tiny_target, lr=3e-2)
    export_adapter(delta, tiny_target, tmp_path / "adapter")
    return delta, tmp_path / "adapter"


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "phi3"])
@pytest.mark.parametrize("method", ["seeking", "lora", "laten"])
def test_peft_loads_it_on_the_original_base(make_lm, tmp_path, family, method):
    source, target = make_lm(family, "source"), make_lm(family, "target")
    if method == "laten":
        delta = laten_transfer(source, target, make_task(), transfer_rate=0.3)
    else:
        parts = {"parts": ["o", "down"]} if (family, method) == ("phi3", "seeking") else {}
        delta = run(method, source, target, lr=3e-2, **parts)
    export_adapter(delta, target, tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(target.name)
    before = logits(base)
    with target.loaded() as model, injected(model, delta):
        wanted = logits(model)
    model = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert float((wanted - before).abs().max()) > 0.01
    torch.testing.assert_close(logits(model), wanted, rtol=1e-3, atol=1e-3)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged), wanted, rtol=1e-3, atol=1e-3)


def test_reading_gives_the_change_back(adapter, tiny_target):
    delta, folder = adapter
    found = read_adapter(folder, tiny_target)
    assert found.changes.keys() == delta.changes.keys()
    for key, change in delta.changes.items():
        torch.testing.assert_close(found.changes[key].entries(), change.entries())


def test_one_saved_by_peft_is_read(tiny_target, tmp_path):
    from peft import LoraConfig, get_peft_model

    with tiny_target.private("float32") as base:
        config = LoraConfig(r=4, lora_alpha=12, target_modules=["up_proj", "embed_tokens", "q_proj"],
                            rank_pattern={"q_proj": 3}, alpha_pattern={"layers.1.self_attn.q_proj": 5},
                            init_lora_weights=False, use_rslora=True)  # fmt: skip
        model = get_peft_model(base, config).eval()
        wanted = logits(model)
        with pytest.warns(UserWarning, match="save_embedding_layers"):
            model.save_pretrained(tmp_path / "peft")
    delta = read_adapter(tmp_path / "peft", tiny_target)
    with tiny_target.loaded() as model, injected(model, delta):
        torch.testing.assert_close(logits(model), wanted, rtol=1e-3, atol=1e-3)


def test_embeddings_stored_beside_adapters_of_a_tied_target(make_lm, tmp_path):
    from peft import LoraConfig, get_peft_model

    tied = make_lm("llama", "target", tie_word_embeddings=True)
    with tied.private("float32") as base:
        model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
        model.save_pretrained(tmp_path / "peft", save_embedding_layers=True)
    assert any("embed_tokens" in name for name in load_file(tmp_path / "peft" / "adapter_model.safetensors"))
    assert {part for _, part in read_adapter(tmp_path / "peft", tied).changes} == {"q"}


def test_embeddings_that_peft_stored_beside_it_are_those_of_the_base(adapter, tiny_target):
    delta, folder = adapter
    file = folder / "adapter_model.safetensors"
    weight = tiny_target.tensor("lm_head.weight")
    save_file(load_file(file) | {"base_model.model.lm_head.weight": weight}, file)
    assert read_adapter(folder, tiny_target).changes.keys() == delta.changes.keys()


@pytest.mark.parametrize("config", ["[]", "5", "null", '"x"'])
def test_a_config_of_another_form_is_refused(adapter, tiny_target, config):
    _, folder = adapter
    (folder / "adapter_config.json").write_text(config)
    with pytest.raises(DataError, match=r"damaged \(no JSON object of names\); copy the adapter again"):
        read_adapter(folder, tiny_target)


def test_one_for_another_base_is_refused(adapter, make_lm):
    _, folder = adapter
    other = make_lm("llama", "target", rms_norm_eps=1e-5)
    with pytest.raises(DataError, match=r"was made for another base .*use its own base"):
        read_adapter(folder, other)
    assert read_adapter(folder, other, any_base=True).norm() > 0
    config = json.loads((folder / "adapter_config.json").read_text())
    save_file(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.safetensors")
    with pytest.raises(DataError, match=r"weights not named"):
        read_adapter(folder, other)
    assert config["base_model_name_or_path"]


def test_a_base_called_model_is_told_by_its_whole_path(adapter, tiny_target, caplog):
    """As the checkpoint of every run folder is called."""
    _, folder = adapter
    run_folder = folder.parent / "run" / "model"
    shutil.copytree(tiny_target.name, run_folder)
    target = LM(run_folder, device="cpu")
    save_file(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.safetensors")
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"base_model_name_or_path": "/elsewhere/run9/model"}))
    with pytest.raises(DataError, match=r"was made for another base .*elsewhere"):
        read_adapter(folder, target)
    file.write_text(json.dumps(config | {"base_model_name_or_path": str(run_folder)}))
    assert read_adapter(folder, target).norm() > 0
    file.write_text(json.dumps(config | {"base_model_name_or_path": None}))
    assert read_adapter(folder, target).norm() > 0
    assert "does not say which base it was made for" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_model.model.model.layers.7.mlp.up_proj.lora_A.weight": torch.zeros(8, 32)}, r"layers.7.* is no LoRA factor of a part"),
        ({"base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector": torch.zeros(8)}, "is no LoRA factor"),
        ({"base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": None}, "1 of the 32 factors that its config names are missing, the first is .*layers.0.mlp.up_proj.lora_A"),
        ({"base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": torch.full((8, 32), torch.nan)}, "up_proj.lora_A.weight holds no finite numbers"),
        ({"base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": torch.ones(8, 32).int()}, "holds no finite numbers .dtype torch.int32"),
        ({"base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": torch.ones(7, 32)}, r"is \[7, 32\], but by its config it is \[8, 32\]"),
        ({"base_model.model.lm_head.weight": torch.ones(8, 32)}, r"lm_head.weight is another unembed than that of .* merge it with peft"),
        ({"base_model.model.strange.base_layer.weight": torch.ones(8)}, "is no LoRA factor"),
    ],
)  # fmt: skip
def test_keys_that_would_be_dropped_are_refused(adapter, tiny_target, change, message):
    _, folder = adapter
    file = folder / "adapter_model.safetensors"
    tensors = {k: v for k, v in (load_file(file) | change).items() if v is not None}
    save_file(tensors, file)
    with pytest.raises((DataError, ShapeError, UnsupportedModelError), match=message):
        read_adapter(folder, tiny_target, any_base=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"target_modules": ["up_proj"]},
            "is no LoRA factor of a part of .* that the config names, and peft would drop it",
        ),
        ({"layers_to_transform": [0], "target_modules": ["up_proj", "embed_tokens"]}, "is no LoRA factor"),
        ({"exclude_modules": ["up_proj"]}, "up_proj.* is no LoRA factor"),
        ({"target_modules": ["nothing"]}, "peft can make nothing of it .*not found"),
        ({"r": 7}, "but by its config it is"),
        ({"lora_alpha": "x"}, "peft can make nothing of it"),
        ({"lora_alpha": float("nan")}, "would count nan times"),
        ({"alpha_pattern": [1]}, "peft can make nothing of it"),
        ({"alpha_pattern": {"(": 3}}, "peft can make nothing of it"),
    ],
)
def test_a_config_that_means_other_factors_is_refused(adapter, tiny_target, change, message):
    _, folder = adapter
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises((DataError, ShapeError, UnsupportedModelError), match=message):
        read_adapter(folder, tiny_target)


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_one_on_tied_embeddings_is_refused(make_lm, tmp_path, module):
    from peft import LoraConfig, get_peft_model

    tied = make_lm("llama", "target", tie_word_embeddings=True)
    with tied.private("float32") as base, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        get_peft_model(base, LoraConfig(r=4, target_modules=[module])).save_pretrained(tmp_path / "peft")
    with pytest.raises(UnsupportedModelError, match="has tied embeddings, .* use a target made by `pkt untie`"):
        read_adapter(tmp_path / "peft", tied)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"peft_type": "IA3"}, "peft_type='IA3'"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\]"),
    ],
)
def test_other_kinds_of_adapter_are_refused(adapter, tiny_target, change, message):
    _, folder = adapter
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UnsupportedModelError, match=message):
        read_adapter(folder, tiny_target)


def test_folders_that_are_none(adapter, tiny_target, tmp_path):
    delta, folder = adapter
    with pytest.raises(DataError, match=r"no adapter_config.json in it"):
        read_adapter(tmp_path, tiny_target)
    (folder / "adapter_model.safetensors").write_bytes(b"version https://git-lfs")
    with pytest.raises(DataError, match="damaged"):
        read_adapter(folder, tiny_target)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="exists and holds files"):
        export_adapter(delta, tiny_target, tmp_path / "full")
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"


def test_what_no_adapter_holds_is_refused_and_nothing_is_left(tiny_target, make_lm, tmp_path):
    with pytest.raises(UnsupportedModelError, match="which no adapter holds"):
        export_adapter(Delta({(0, "up"): Dense(torch.ones(56, 32))}), tiny_target, tmp_path / "a")
    tied = make_lm("llama", "target", tie_word_embeddings=True)
    embed = LowRank(torch.ones(2, 32), torch.ones(tied.dims.vocab, 2))
    with pytest.raises(UnsupportedModelError, match="pkt untie"):
        export_adapter(Delta({(None, "embed"): embed}), tied, tmp_path / "a")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("sharded", [False, True])
def test_an_untied_copy_says_the_same_and_can_be_adapted(tiny_source, make_lm, tmp_path, sharded):
    tied = make_lm("llama", "target", tie_word_embeddings=True)
    if sharded:
        with tied.loaded() as model:
            model.save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
        tied.tokenizer.save_pretrained(tmp_path / "sharded")
        tied = LM(tmp_path / "sharded", device="cpu")
        assert len(tied.checkpoint.shards) > 1
    untie(tied, tmp_path / "apart")
    apart = LM(tmp_path / "apart", device="cpu")
    apart.check()
    with tied.loaded() as one, apart.loaded() as two:
        assert torch.equal(logits(one), logits(two))
        assert two.lm_head.weight.data_ptr() != two.model.embed_tokens.weight.data_ptr()
    delta = run("seeking", tiny_source, apart, lr=3e-2)
    assert {(None, "embed"), (None, "unembed")} <= delta.changes.keys()
    export_adapter(delta, apart, tmp_path / "adapter")
    with pytest.raises(UnsupportedModelError, match="are not tied; use it as it is"):
        untie(apart, tmp_path / "again")
    with pytest.raises(DataError, match="not an empty folder"):
        untie(tied, tmp_path / "apart")
