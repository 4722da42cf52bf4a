"""Every supported family, on tiny random models: what is read, changed, exported and scored is what the stock model has."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_models
import torch
from peft import PeftModel
from test_attribution import walk
from test_laten import gen, make_task
from test_lora_methods import make_task as make_train_task
from test_lora_methods import run
from transformers import AutoModelForCausalLM

from pkt.align import lora as lora_module
from pkt.errors import UnsupportedModelError
from pkt.extract.attribution import lens_of
from pkt.extract.scores import encode_answers
from pkt.inject.adapter import export_adapter
from pkt.inject.adapter_reading import read_adapter
from pkt.inject.apply import injected, write_
from pkt.inject.changes import Dense, Lines, LowRank
from pkt.inject.delta import Delta
from pkt.inject.export import export
from pkt.inject.untie import untie
from pkt.methods import METHODS
from pkt.models.families import BIAS, FAMILIES, KINDS, LINEAR, dims_of, family_of
from pkt.models.lm import LM
from pkt.models.parts import logits as logits_of

NAMES = list(FAMILIES)
IDS = torch.arange(3, 23).view(2, 10)
NORMS = ("input_norm", "ffn_norm", "attention_out_norm", "ffn_out_norm", "q_norm", "k_norm")


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def some(change, shape, gen):
    """A random change of a kind, for a tensor of a shape."""

    def r(*size):
        return 0.1 * torch.randn(*size, generator=gen)

    if len(shape) == 1 or change == "dense":
        return Dense(r(*shape))
    height, width = shape
    if change == "low rank":
        return LowRank(r(3, width), r(height, 3))
    axis = 0 if change == "rows" else 1
    return Lines(torch.randperm(shape[axis], generator=gen)[:4], r(4, shape[1 - axis]), axis)


def everywhere(lm, change, parts=None):
    """A delta that changes every part of the second layer, and those of no layer."""
    stored = lm.family.keys(lm.dims.layers)
    names = parts or [p for p in (*LINEAR, *NORMS) if getattr(lm.family, p) and stored.get(lm.family.tensor(1, p))]
    keys = [(1, part) for part in names if lm.family.tensor(1, part) in lm.checkpoint.files]
    if parts is None:
        keys += [(None, "embed"), (None, "unembed"), (None, "final_norm")]
        keys += [(1, p + BIAS) for p in LINEAR if lm.family.tensor(1, p + BIAS) in lm.checkpoint.files]
    return Delta({key: some(change, lm.shape(*key), gen(i)) for i, key in enumerate(keys)})


def test_the_table_of_tiny_models_has_every_family():
    assert tiny_models.FAMILIES.keys() == FAMILIES.keys()


@pytest.mark.parametrize("family", NAMES)
@pytest.mark.parametrize("change", ["rows", "columns", "low rank", "dense"])
def test_hooked_written_and_exported_logits_are_equal(make_lm, tmp_path, family, change):
    lm = make_lm(family, "target")
    delta = everywhere(lm, change)
    assert {part for _, part in delta.changes} >= {*LINEAR, "input_norm", "embed", "unembed", "final_norm"}
    with lm.loaded() as model:
        before = logits(model)
        with injected(model, delta):
            hooked = logits(model)
        assert torch.equal(logits(model), before)
    assert (hooked - before).abs().max() > 0.1
    with lm.private() as model:
        write_(model, delta)
        torch.testing.assert_close(logits(model), hooked, rtol=1e-4, atol=2e-4)
    export(delta, lm, tmp_path / "out")
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), hooked, rtol=1e-4, atol=2e-4
    )
    LM(tmp_path / "out").check()


def test_biases_are_changed_and_exported_and_no_adapter_holds_them(make_lm, tmp_path):
    lm = make_lm("gemma2", "target", attention_bias=True)
    delta = everywhere(lm, "dense")
    biases = Delta({key: change for key, change in delta.changes.items() if key[1].endswith(BIAS)})
    assert {part for _, part in biases.changes} == {"q_bias", "k_bias", "v_bias", "o_bias"}
    with lm.loaded() as model, injected(model, biases):
        hooked = logits(model)
    export(biases, lm, tmp_path / "out")
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(made), hooked, rtol=1e-4, atol=2e-4)
    with pytest.raises(
        UnsupportedModelError, match=r"changes model.layers.1.self_attn.q_proj.bias, which a LoRA adapter cannot hold"
    ):
        export_adapter(biases, lm, tmp_path / "adapter")


@pytest.mark.parametrize("family", NAMES)
def test_every_part_alone_reaches_its_own_rows(make_lm, family):
    """A part that shares a matrix changes no row of the others."""
    lm = make_lm(family, "target")
    for part in LINEAR:
        delta = everywhere(lm, "dense", [part])
        with lm.private() as model:
            before = {name: w.clone() for name, w in model.state_dict().items()}
            write_(model, delta)
            (name,) = {lm.family.tensor(1, part)}
            difference = model.state_dict()[name] - before[name]
            assert [n for n, w in model.state_dict().items() if not torch.equal(w, before[n])] == [name]
        rows = lm.family.rows(part, lm.dims)
        torch.testing.assert_close(difference[rows], delta.changes[1, part].values, rtol=0, atol=1e-6)
        difference[rows] = 0
        assert not difference.any()
        torch.testing.assert_close(lm.part(1, part), before[name][rows])


@pytest.mark.parametrize("family", NAMES)
@pytest.mark.parametrize("tied", [False, True])
def test_the_lens_at_the_last_layer_gives_the_models_own_logits(make_lm, family, tied):
    lm = make_lm(family, "target", tie_word_embeddings=tied)
    task = make_task()
    (ids,) = encode_answers(lm, task.split("extract")[:1], "plain")
    with lm.loaded() as model, torch.no_grad():
        own = model(torch.tensor([ids[:-1]])).logits[0, -1]
        state = walk(model, ids)["h"]
        scaled = state * torch.rsqrt(state.pow(2).mean() + lm.dims.norm_eps)
        lens = lens_of(model, lm, 1 << 24)
        torch.testing.assert_close(lens.capped(lens.rows(slice(None)) @ scaled), own, rtol=1e-4, atol=1e-4)
        found = lens.logprob(scaled[None], torch.tensor([ids[-1]]))
        torch.testing.assert_close(found[0], own.log_softmax(-1)[ids[-1]], rtol=1e-4, atol=1e-5)
        hidden = model.model(torch.tensor([ids[:-1]]))[0]
        assert torch.equal(logits_of(model, lm, hidden)[0, -1], own.float())


@pytest.mark.parametrize("family", NAMES)
def test_writes_of_all_neurons_add_up_to_what_the_block_writes(make_lm, family):
    """The linearisation behind a norm of the block's output: nothing is lost, nothing counted twice."""
    from pkt.extract.attribution import AttributionConfig, _visit, values_of

    lm = make_lm(family, "target")
    batch = encode_answers(lm, make_task().split("extract"), "plain")
    with lm.loaded() as model, torch.no_grad():
        for site in _visit(model, lm, batch, AttributionConfig()):
            for kind in KINDS:
                for layer in range(lm.dims.layers):
                    total = values_of(model, lm, kind, layer).float() @ site.act[kind][layer]
                    torch.testing.assert_close(total, site.write[kind][layer], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "phi3"])
def test_adapters_of_any_low_rank_delta_load_in_peft_and_come_back(make_lm, tmp_path, family):
    lm = make_lm(family, "target")
    parts = [everywhere(lm, "rows", ["v", "up"]), everywhere(lm, "columns", ["o", "down", "q"]), everywhere(lm, "low rank", ["k", "gate"])]  # fmt: skip
    delta = Delta({key: change for part in parts for key, change in part.changes.items()})
    export_adapter(delta, lm, tmp_path / "adapter")
    with lm.loaded() as model, injected(model, delta):
        wanted = logits(model)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(lm.name), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(model), wanted, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(logits(model.merge_and_unload()), wanted, rtol=1e-3, atol=1e-3)
    found = read_adapter(tmp_path / "adapter", lm)
    assert {part for _, part in found.changes} == {lm.family.whole(part) for part in LINEAR}
    with lm.loaded() as model, injected(model, found):
        torch.testing.assert_close(logits(model), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "phi3"])
@pytest.mark.parametrize("name", ["lora", "pissa", "seeking"])
def test_the_delta_of_a_trained_adapter_is_the_trained_model(make_lm, monkeypatch, family, name):
    """Embeddings too, which Gemma scales behind the matrix."""
    source, target, trained = make_lm("llama", "source"), make_lm(family, "target"), {}
    real = lora_module.finetune

    def finetune(model, *args):
        history = real(model, *args)
        model.eval()
        trained["logits"] = logits(model)
        model.train()
        return history

    monkeypatch.setattr(lora_module, "finetune", finetune)
    more = {"parts": ["o", "down"]} if (family, name) == ("phi3", "seeking") else {}
    if name == "seeking" and family.startswith("gemma"):
        more = {"parts": ["gate", "up", "down"]}  # its heads are wider than the source's
    delta = run(name, source, target, lr=3e-2, **more)
    assert (None, "embed") in delta.changes
    with target.loaded() as model:
        before = logits(model)
        with injected(model, delta):
            found = logits(model)
    assert (found - before).abs().max() > 0.01
    torch.testing.assert_close(found, trained["logits"], rtol=1e-3, atol=1e-3)


def test_gemma_3_with_vision_is_refused_with_what_to_do():
    from transformers import Gemma3Config, MixtralConfig

    with pytest.raises(
        UnsupportedModelError, match=r"big: architecture 'gemma3' is not supported.*docs/methods.md, section 16"
    ):
        family_of(Gemma3Config(), "big")
    with pytest.raises(UnsupportedModelError, match=r"big: architecture 'mixtral'.*experts.*dense"):
        family_of(MixtralConfig(), "big")


def test_the_documented_lines_make_its_text_model(tokenizer, tmp_path, capfd):
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3TextConfig, SiglipVisionConfig

    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    text = Gemma3TextConfig(vocab_size=len(tokenizer), head_dim=8, **tiny_models.TARGET)
    config = Gemma3Config(
        text_config=text.to_dict(), vision_config=vision.to_dict(), mm_tokens_per_image=4, image_token_index=9
    )
    whole = Gemma3ForConditionalGeneration(config).eval()
    whole.generation_config.eos_token_id = [2, 4]  # of the sequence and of a turn
    whole.save_pretrained(tmp_path / "whole")
    tokenizer.save_pretrained(tmp_path / "whole")
    page = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
    (lines,) = [block for block in page.split("```python\n") if "Gemma3ForConditionalGeneration" in block]
    exec(lines.split("```")[0], {"MODEL": tmp_path / "whole", "DIR": tmp_path / "text"})
    lm = LM(tmp_path / "text", device="cpu")
    lm.check()
    with lm.loaded() as model:
        torch.testing.assert_close(logits(model), logits(whole))
        assert model.generation_config.eos_token_id == [2, 4]
    assert lm.tokenizer.get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize(
    ("family", "field", "value"),
    [
        ("gemma3_text", "use_bidirectional_attention", True),
        ("gemma2", "num_experts", 4),
        ("phi3", "pretraining_tp", 2),
        ("llama", "final_logit_softcapping", 30.0),
        ("llama", "query_pre_attn_scalar", 20),
    ],
)
def test_a_field_that_could_matter_is_refused_in_any_family(make_lm, family, field, value):
    config = make_lm(family, "target").config
    config = type(config).from_dict({**config.to_dict(), field: value})
    with pytest.raises(UnsupportedModelError, match=f"tiny: the config sets {field}={value}"):
        family_of(config, "tiny")
    assert dims_of(config) == make_lm(family, "target").dims


@pytest.mark.parametrize("family", ["gemma", "gemma2", "gemma3_text", "phi3"])
def test_an_untied_copy_says_the_same(make_lm, tmp_path, family):
    tied = make_lm(family, "target", tie_word_embeddings=True)
    untie(tied, tmp_path / "apart")
    apart = LM(tmp_path / "apart", device="cpu")
    apart.check()
    with tied.loaded() as one, apart.loaded() as two:
        assert torch.equal(logits(one), logits(two))


def test_gkd_distils_capped_logits_into_shared_matrices(make_lm):
    source, target = make_lm("gemma2", "source"), make_lm("phi3", "target")
    method = METHODS.get("gkd")
    cfg = method.config(epochs=1, batch_size=2, micro_batch=2, max_new_tokens=4, lr=1e-3, lmbda=0.0)
    delta = method(source, target, make_train_task(), cfg, gen(), style="plain")
    assert {part for _, part in delta.changes} >= {"q+k+v", "gate+up", "o", "down"}
    with target.loaded() as model:
        before = logits(model)
        with injected(model, delta):
            assert (logits(model) - before).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("llama", {"pretraining_tp": 2, "unsloth_fixed": True, "unsloth_version": "2026.1"}),
        ("phi3", {"full_attn_mod": 1, "interpolate_factor": 1, "auto_map": {"AutoConfig": "a.B"}}),
    ],
)
def test_fields_of_real_checkpoints_that_change_nothing(make_lm, family, fields):
    config = make_lm(family, "target").config
    assert family_of(type(config).from_dict({**config.to_dict(), **fields}), "tiny")
