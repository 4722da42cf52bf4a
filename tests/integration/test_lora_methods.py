"""Seeking, random_init, lora, pissa and sft: shapes, determinism, starts, and equality with peft's own."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from test_laten import examples, gen

from pkt.align.lora import LoraConfig, adapted, tune_lora
from pkt.align.source_start import SourceStartConfig, locate_blocks, source_start
from pkt.certify.arms import Setting, missing, transfer
from pkt.errors import ConfigError, DataError, ShapeError, UnsupportedModelError
from pkt.extract.blocks import shapes
from pkt.inject.apply import injected
from pkt.inject.changes import LowRank
from pkt.inject.delta import Delta
from pkt.methods import METHODS
from pkt.methods.pissa import PissaConfig, principal
from pkt.models.controls import RandomSource, ShuffledSource
from pkt.models.families import LINEAR
from pkt.models.lm import LM
from pkt.tasks.base import Task
from pkt.tasks.formats import FORMATS
from pkt.tasks.losses import encode_all, example_losses

NAMES = ("seeking", "random_init", "lora", "pissa", "sft")
SMALL = {"epochs": 1, "batch_size": 2, "micro_batch": 2, "lr": 1e-3}
IDS = torch.tensor([[1, 5, 9, 3, 17]])


def options(name, **more):
    return METHODS.get(name).config(**{**SMALL, **({} if name in ("sft", "seqkd") else {"rank": 4}), **more})


def make_task(changed=False):
    splits = {"extract": examples("flurbs", 3), "train": examples("zorps", 4), "test": examples("blicks", 2)}
    return Task("tiny", FORMATS["gsm8k"], lambda name: splits[name], "test")


def run(name, source, target, seed=0, **more):
    return METHODS.get(name)(source, target, make_task(), options(name, **more), gen(seed), style="plain")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_delta_fits_and_both_models_are_unchanged(make_lm, name, family):
    source, target = make_lm(family, "source"), make_lm(family, "target")
    with target.loaded() as model, source.loaded() as large:
        before = {k: v.clone() for m in (model, large) for k, v in m.state_dict(prefix=str(id(m))).items()}
        delta = run(name, source, target)
        after = {k: v for m in (model, large) for k, v in m.state_dict(prefix=str(id(m))).items()}
        assert all(torch.equal(v, before[k]) for k, v in after.items())
        assert not model.training
        assert not any(p.requires_grad for p in model.parameters())
    assert len(list(delta.tensors(target))) == len(delta.changes)
    assert delta.norm() > 0
    assert delta.provenance["steps"] == len(delta.provenance["history"]) == 2
    assert delta.provenance["labels"] == (7 if name in ("seeking", "random_init") else 4)


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_bytes(tiny_source, tiny_target, tmp_path, name):
    for file, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(hash(file))
        run(name, tiny_source, tiny_target, seed).save(tmp_path / file)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


@pytest.mark.parametrize(("name", "rank"), [("seeking", 8), ("random_init", 8), ("pissa", 8), ("lora", 4)])
def test_rank_of_the_change(tiny_source, tiny_target, name, rank):
    delta = run(name, tiny_source, tiny_target)
    assert delta.changes.keys() == {*((i, p) for i in range(2) for p in LINEAR), (None, "embed"), (None, "unembed")}
    for change in delta.changes.values():
        assert isinstance(change, LowRank)
        assert len(change.a) == rank
    assert run(name, tiny_source, tiny_target, parts=["up", "q"], embeddings=False).changes.keys() == {
        (i, p) for i in range(2) for p in ("q", "up")
    }


@pytest.mark.parametrize("alpha", [4.0, 16.0])
def test_training_starts_at_the_target_itself(tiny_source, tiny_target, alpha):
    """With a learning rate of nothing the change is none, though the base lacks `B0 A0`."""
    delta = run("seeking", tiny_source, tiny_target, lr=1e-30, alpha=alpha, dropout=0.0)
    assert max(float(c.a.abs().max()) for c in delta.changes.values()) > 0.01
    for change in delta.changes.values():
        torch.testing.assert_close(change.entries(), torch.zeros_like(change.entries()), atol=1e-6, rtol=0)
    loss = delta.provenance["history"][0]["loss"]
    data = encode_all(make_task().split("train"), "plain", tiny_target, loss_on_prompt=False)
    with tiny_target.loaded() as model, torch.no_grad():
        losses = [float(example_losses(model, tiny_target, [e])) for e in data]
    assert min(losses) <= loss <= max(losses)


def test_fine_tuning_lowers_the_loss(tiny_source, tiny_target):
    data = encode_all(make_task().split("train"), "plain", tiny_target, loss_on_prompt=False)
    for name in NAMES:
        delta = run(name, tiny_source, tiny_target, epochs=5, lr=3e-3)
        with tiny_target.loaded() as model, torch.no_grad():
            before = float(example_losses(model, tiny_target, data).mean())
            with injected(model, delta):
                assert float(example_losses(model, tiny_target, data).mean()) < before


def test_pissa_starts_as_in_peft(tiny_target):
    cfg = PissaConfig(rank=4, alpha=8.0)
    ours = principal(tiny_target, cfg, gen())
    with tiny_target.private("float32") as model:
        targets = [tiny_target.family.path(*key) for key in ours if key[0] is not None]
        theirs = get_peft_model(model, PeftConfig(r=4, lora_alpha=8, init_lora_weights="pissa", target_modules=targets))
        for key, pair in ours.items():
            if key[0] is None:
                continue
            module = theirs.base_model.model.get_submodule(tiny_target.family.path(*key))
            product = module.lora_B["default"].weight @ module.lora_A["default"].weight
            torch.testing.assert_close(pair.entries(), product, rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(pair.a.norm(dim=1), module.lora_A["default"].weight.norm(dim=1), rtol=1e-3, atol=1e-5)  # fmt: skip
            weight = tiny_target.tensor(tiny_target.family.tensor(*key))
            torch.testing.assert_close(weight - cfg.scaling * pair.entries(), module.base_layer.weight, rtol=1e-3, atol=1e-5)  # fmt: skip


def test_lora_trains_as_peft_on_its_own(tiny_target):
    """The same adapters trained by a plain loop with the Trainer's schedule: the same loss at every step."""
    cfg = LoraConfig(**SMALL, rank=4, dropout=0.0, warmup=0.0, schedule="constant", embeddings=False)
    data = encode_all(make_task().split("train"), "plain", tiny_target, loss_on_prompt=False)
    history = tune_lora(tiny_target, data, cfg.model_copy(update={"batch_size": 4, "epochs": 3}), gen()).provenance["history"]  # fmt: skip
    from pkt.align.finetune import training_seed
    from pkt.randomness import own_randomness

    with tiny_target.private("float32") as base, own_randomness(training_seed(gen())):
        base.requires_grad_(False)
        modules = [tiny_target.family.path(*key) for key in adapted(tiny_target, cfg)]
        model = get_peft_model(base, PeftConfig(r=4, lora_alpha=16, target_modules=modules))
        model.train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0)
        for record in history:
            logits = torch.cat([model(torch.tensor([e.ids])).logits[0, :-1][torch.tensor(e.labels[1:]) >= 0] for e in data])  # fmt: skip
            labels = torch.cat([torch.tensor([x for x in e.labels[1:] if x >= 0]) for e in data])
            loss = torch.nn.functional.cross_entropy(logits.float(), labels)
            assert record["loss"] == pytest.approx(float(loss.detach()), rel=2e-3)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()


def test_blocks_are_those_of_the_most_sensitive_place(tiny_source, tiny_target):
    """Sensitivities by a plain backward pass, blocks by a double loop."""
    cfg = SourceStartConfig(rank=4)
    found = locate_blocks(tiny_source, tiny_target, make_task(), cfg, "plain")
    data = encode_all(make_task().split("extract"), "plain", tiny_source, loss_on_prompt=False)
    with tiny_source.private("float32") as model:
        sums = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in model.named_parameters()}
        for example in data:
            model.zero_grad()
            example_losses(model, tiny_source, [example]).sum().backward()
            for name, p in model.named_parameters():
                sums[name] += (p.double() * p.grad.double()).abs().detach()
    totals = [sum(float(s.sum()) for name, s in sums.items() if f"layers.{i}." in name) for i in range(3)]
    assert found.blocks.layers.tolist() == pytest.approx(totals, rel=1e-4)
    best = sorted(sorted(range(3), key=lambda i: -totals[i])[:2])
    assert found.layers == best
    for (layer, part), (rows, columns) in shapes(tiny_target, adapted(tiny_target, cfg)).items():
        for at in range(3) if layer is not None else [None]:
            s = sums[tiny_source.family.tensor(at, part)]
            lines = s.shape[0] - rows + 1 if layer is not None else 1
            places = [(r, c) for r in range(lines) for c in range(s.shape[1] - columns + 1)]
            assert found.blocks.corners[at, part] == max(places, key=lambda at: float(s[at[0] : at[0] + rows, at[1] : at[1] + columns].sum()))  # fmt: skip


def test_groups_of_layers_find_the_same(tiny_source, tiny_target):
    whole, parts = (
        locate_blocks(tiny_source, tiny_target, make_task(), SourceStartConfig(rank=4, layers_at_once=n), "plain") for n in (0, 1)
    )  # fmt: skip
    assert whole.blocks.corners == parts.blocks.corners
    assert torch.equal(whole.blocks.layers, parts.blocks.layers)


def test_what_was_located_is_kept_and_a_damaged_file_is_not_read(tiny_source, tiny_target, tmp_path, caplog):
    lm = LM(tiny_source.name, device="cpu", memo=tmp_path)
    cfg = SourceStartConfig(rank=4)
    one = locate_blocks(lm, tiny_target, make_task(), cfg, "plain")
    (file,) = tmp_path.glob("*.safetensors")
    written = file.read_bytes()
    lm.loaded = lambda: pytest.fail("located again")
    two = locate_blocks(lm, tiny_target, make_task(), cfg, "plain")
    assert one.norms == two.norms
    assert one.blocks.corners == two.blocks.corners
    file.write_bytes(written[:-1] + bytes([written[-1] ^ 1]))
    again = LM(tiny_source.name, device="cpu", memo=tmp_path)
    assert locate_blocks(again, tiny_target, make_task(), cfg, "plain").norms == one.norms
    assert "is damaged; made anew" in caplog.text
    assert file.read_bytes() == written


@pytest.mark.parametrize("blocks", ["matrix", "coupled", "random"])
@pytest.mark.parametrize("handle", [RandomSource, ShuffledSource])
def test_control_starts_have_the_norms_of_the_real_one(tiny_source, tiny_target, handle, blocks):
    cfg = SourceStartConfig(rank=4, blocks=blocks)
    found = locate_blocks(tiny_source, tiny_target, make_task(), cfg, "plain")
    real = source_start(tiny_source, tiny_target, found, cfg, gen())
    other = source_start(handle(tiny_source, 1), tiny_target, found, cfg, gen())
    again = source_start(handle(tiny_source, 1), tiny_target, found, cfg, gen())
    for key, pair in real.items():
        assert float(other[key].entries().norm()) == pytest.approx(float(pair.entries().norm()), rel=1e-4)
        assert torch.equal(other[key].b, again[key].b)
        cosine = torch.nn.functional.cosine_similarity(pair.entries().flatten(), other[key].entries().flatten(), dim=0)
        assert abs(float(cosine)) < 0.5
    block = tiny_source.block("model.layers.0.mlp.up_proj.weight", (3, 4), (20, 10))
    assert torch.equal(block, tiny_source.tensor("model.layers.0.mlp.up_proj.weight")[3:23, 4:14])
    shown = handle(tiny_source, 1).block("model.layers.0.mlp.up_proj.weight", (3, 4), (20, 10))
    if handle is ShuffledSource:
        assert torch.equal(shown.flatten().sort().values, block.flatten().sort().values)
    assert not torch.equal(shown, block)


def test_arms_of_seeking_differ_and_no_source_is_lora(tiny_source, tiny_target):
    method = METHODS.get("seeking")
    setting = Setting(method, tiny_source, tiny_target, make_task(), "plain", examples("grumps", 3))
    arms = (
        "real_source",
        "random_source",
        "shuffled_source",
        "self_source",
        "no_source",
        "random_neurons",
        "wrong_task",
    )
    assert all(
        missing(method, options("seeking"), arm, has_wrong_task=True) is None for arm in arms if arm != "real_source"
    )
    deltas = {arm: transfer(arm, setting, options("seeking"), 0) for arm in arms}
    bytes_ = {arm: d.changes[0, "up"].a.numpy().tobytes() for arm, d in deltas.items()}
    assert (
        len(set(bytes_.values())) >= len(arms) - 1
    )  # located on another task, the block of one matrix may be the same
    again = transfer("real_source", setting, options("seeking"), 0)
    assert again.changes[0, "up"].a.numpy().tobytes() == bytes_["real_source"]
    assert all(len(c.a) == 4 for c in deltas["no_source"].changes.values())
    for name in ("lora", "pissa", "sft", "random_init"):
        found = METHODS.get(name)
        assert not found.reads_source
        assert all(missing(found, options(name), arm, has_wrong_task=True) for arm in arms[1:])


def test_bad_pairs_and_options_are_refused_with_names(tiny_source, tiny_target, make_lm):
    with pytest.raises(ConfigError, match=r"rank is 17, but model.layers.0.self_attn.k_proj.weight of .* is 16 x 32; use a rank of at most 16"):  # fmt: skip
        run("lora", tiny_source, tiny_target, rank=17)
    with pytest.raises(ConfigError, match=r"rank is 97, .* use a rank of at most 16"):
        run("lora", tiny_source, tiny_target, rank=97)
    with pytest.raises(ConfigError, match="name every part once"):
        run("pissa", tiny_source, tiny_target, parts=["up", "up"])
    with pytest.raises(UnsupportedModelError, match="every target layer needs a source layer"):
        run("seeking", tiny_target, tiny_source)
    wide = make_lm("llama", "source", num_hidden_layers=2)
    with pytest.raises(UnsupportedModelError, match=r"its q matrix is 32 x 32, smaller than the target's of 48 x 48"):
        run("seeking", tiny_target, wide)
    with pytest.raises(
        UnsupportedModelError, match=r"leave q, .*up, .*down out of method.parts and set method.embeddings=false"
    ):
        run("seeking", tiny_target, wide)
    with pytest.raises(UnsupportedModelError, match=r"whole heads cannot be taken.* size 8 and 3 queries per key.* size 8 and 2"):  # fmt: skip
        run("seeking", tiny_source, tiny_target, blocks="coupled")
    with pytest.raises(ShapeError, match=r"it has no block of \[20, 10\] at \[70, 0\]"):
        tiny_source.block("model.layers.0.mlp.up_proj.weight", (70, 0), (20, 10))


def test_adapters_on_embeddings_need_one_token_map(tiny_source, tiny_target, tmp_path):
    import shutil

    folder = shutil.copytree(tiny_source.name, tmp_path / "other")
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    vocab = content["model"]["vocab"]
    names = list(vocab)
    vocab[names[300]], vocab[names[301]] = vocab[names[301]], vocab[names[300]]
    file.write_text(json.dumps(content))
    other = LM(folder, device="cpu")
    with pytest.raises(UnsupportedModelError, match=r"an adapter on the embeddings .* needs equal token maps, .* differ in 2"):  # fmt: skip
        run("seeking", other, tiny_target)
    run("seeking", other, tiny_target, embeddings=False)


def test_tied_embeddings_get_no_adapter(tiny_source, make_lm):
    tied = make_lm("llama", "target", tie_word_embeddings=True)
    assert all(layer is not None for layer, _ in run("seeking", tiny_source, tied).changes)


def test_a_coupled_pair(tiny_target, make_lm):
    source = make_lm("llama", "source", num_key_value_heads=3)
    found = locate_blocks(source, tiny_target, make_task(), SourceStartConfig(rank=4, blocks="coupled"), "plain")
    corners = found.blocks.corners
    for layer in range(3):
        (gate, up, down), (q, k, v, o) = ([corners[layer, p] for p in parts] for parts in (("gate", "up", "down"), "qkvo"))  # fmt: skip
        assert gate == up == down[::-1]
        assert k == v
        assert q == o[::-1]
        assert (q[0] // 16, q[1]) == (k[0] // 8, k[1])
        assert q[0] % 16 == k[0] % 8 == 0
    assert run("seeking", source, tiny_target, blocks="coupled").norm() > 0


def test_zero_delta_changes_no_logit(tiny_target):
    nothing = Delta({(0, "up"): LowRank(torch.zeros(4, 32), torch.zeros(56, 4))})
    with tiny_target.loaded() as model:
        before = model(IDS).logits
        with injected(model, nothing):
            assert torch.equal(model(IDS).logits, before)


@pytest.mark.parametrize("name", [*NAMES, "seqkd"])
def test_what_would_stop_a_training_stops_before_it(tiny_source, tiny_target, name):
    method = METHODS.get(name)
    with pytest.raises(ConfigError, match="method.batch_size is 5, which is no multiple of 2"):
        method.requires(tiny_source, tiny_target, options(name, batch_size=5))
    task = make_task()
    empty = Task("tiny", task.format, lambda split: [] if split == "train" else task.split(split), "test")
    with pytest.raises(DataError, match="the train split is empty"):
        method(tiny_source, tiny_target, empty, options(name), gen(), style="plain")


def test_no_example_to_locate_with(tiny_source, tiny_target):
    task = make_task()
    empty = Task("tiny", task.format, lambda split: [] if split == "extract" else task.split(split), "test")
    with pytest.raises(DataError, match="the extract split is empty"):
        METHODS.get("seeking")(tiny_source, tiny_target, empty, options("seeking"), gen(), style="plain")


def test_a_tied_source_for_an_untied_target(tiny_target, make_lm):
    tied = make_lm("llama", "source", tie_word_embeddings=True)
    with pytest.raises(UnsupportedModelError, match=r"are tied, .* untie the source too .*method.embeddings=false"):
        run("seeking", tied, tiny_target)
    assert run("seeking", tied, tiny_target, embeddings=False).norm() > 0


def test_random_blocks_use_what_was_located_for_all(tiny_source, tiny_target, tmp_path):
    lm = LM(tiny_source.name, device="cpu", memo=tmp_path)
    run("seeking", lm, tiny_target)
    lm.loaded = lambda: pytest.fail("located again")
    assert run("seeking", lm, tiny_target, blocks="random").norm() > 0
    assert len(list(tmp_path.glob("blocks-*.safetensors"))) == 1


@pytest.mark.parametrize("embeddings", [True, False])
def test_a_run_says_that_tied_embeddings_get_no_adapter(recipe, pkt, make_lm, tmp_path, embeddings):
    tied = make_lm("llama", "target", tie_word_embeddings=True)
    method = {"name": "lora", "rank": 2, "epochs": 1, "batch_size": 2, "micro_batch": 2, "embeddings": embeddings}
    assert (
        pkt("run", recipe(target=tied.name, method=method, evaluate={"arms": []}), "--out", tmp_path / "out").code == 0
    )
    warnings = json.loads((tmp_path / "out" / "summary.json").read_text())["warnings"]
    said = [line for line in warnings if "are tied and got no adapter; `pkt untie` makes a target" in line]
    assert len(said) == embeddings
