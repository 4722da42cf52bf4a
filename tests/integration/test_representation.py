"""Fixed positions, Grams on disk, and `pkt analyze representation`."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pytest
import torch
from run_folders import make_data, message_row, temporaries, write_lines

from pkt.errors import DataError, UnsupportedModelError
from pkt.flops import counted
from pkt.memo_costs import watched
from pkt.models.controls import RandomSource
from pkt.models.hooks import record
from pkt.models.lm import LM
from pkt.report.representation_words import is_in_order, sentence
from pkt.similarity.grams import MODULES, RESIDUAL, Grams, Untrained, gram, num_features
from pkt.similarity.layers import layer_similarity
from pkt.similarity.measures import CKA
from pkt.similarity.positions import PER_TEXT, draw_positions
from pkt.tasks.prompts import encode
from pkt.tasks.sources import task

STYLE = "plain"


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A task of twelve texts in the splits that are read."""
    at = make_data(tmp_path_factory.mktemp("texts"))
    names = ("mild flurbs", "wet zorps", "old glims", "two blicks", "red nurps", "flat quins")
    rows = [message_row(name, i) for i, name in enumerate(names, 3)]
    write_lines(at / "splits" / "gsm8k" / "align.jsonl", rows)
    write_lines(at / "splits" / "gsm8k" / "train.jsonl", [message_row(f"tall {name}", 9) for name in names])
    return at


@pytest.fixture(scope="module")
def examples(folder):
    return task("gsm8k", str(folder)).split("train")


def refuse_load(self, dtype=None):
    raise AssertionError(f"{self.name} was loaded")


def outputs(lm: LM, side) -> dict[tuple[int, str], torch.Tensor]:
    """Outputs of all layers and modules at the positions, from whole forward passes."""
    paths = {
        (layer, module): lm.family.layer.format(i=layer) if module == RESIDUAL else lm.family.path(layer, module)
        for layer in range(lm.dims.layers)
        for module in MODULES
    }
    found = {place: [] for place in paths}
    with lm.loaded() as model, torch.no_grad(), record(model, (), paths.values()) as kept:
        for ids, at in zip(side.ids, side.at, strict=True):
            model(torch.tensor([[*ids, 5, 6]]))  # what follows a position changes nothing
            for (layer, module), path in paths.items():
                rows = slice(None) if module == RESIDUAL else lm.family.rows(module, lm.dims)
                found[layer, module].append(kept[f"{path}:out"][0][at][:, rows])
    return {place: torch.cat(parts) for place, parts in found.items()}


def test_positions_are_indices_where_tokens_are_equal(tiny_source, tiny_target, examples):
    found = draw_positions((tiny_source, tiny_target), examples, STYLE, 20, gen())
    one, other = found.sides
    assert one == other
    assert len(found) == 20
    assert not found.notes
    assert found.text.tolist() == [k for k, at in enumerate(one.at) for _ in at]
    assert max(map(len, one.at)) <= PER_TEXT
    by_id = {example.id: encode(example, STYLE, tiny_target.tokenizer).ids for example in examples}
    seen = set()
    for name, ids, at in zip(found.texts, one.ids, one.at, strict=True):
        assert ids == by_id[name][: at[-1] + 1]
        assert at == sorted(set(at))
        assert at[0] > 0
        prefixes = {tuple(ids[: i + 1]) for i in at}
        assert not prefixes & seen
        seen |= prefixes
    assert draw_positions((tiny_source, tiny_target), examples, STYLE, 20, gen()).sides == found.sides
    assert draw_positions((tiny_source, tiny_target), examples, STYLE, 20, gen(1)).sides != found.sides


def test_what_opens_two_texts_counts_once(tiny_source, tiny_target, examples):
    twice = [*examples[:3], *examples[:3]]
    once = draw_positions((tiny_source, tiny_target), examples[:3], STYLE, 500, gen())
    found = draw_positions((tiny_source, tiny_target), twice, STYLE, 500, gen())
    assert len(found) == len(once)
    tokens = [encode(e, STYLE, tiny_target.tokenizer).ids for e in examples[:3]]
    assert len(once) == len({tuple(ids[: i + 1]) for ids in tokens for i in range(1, len(ids))})
    assert once.notes == [f"The texts hold {len(once)} positions, fewer than the 500 asked for."]


def test_positions_end_after_the_same_character_where_tokens_differ(make_lm, tiny_target, examples):
    source = make_lm("llama", "source", speaks="llama3")  # writes a beginning of sequence, the other does not
    found = draw_positions((source, tiny_target), examples, STYLE, 40, gen())
    assert found.sides[0] != found.sides[1]
    texts = {e.id: f"{e.prompt}\n{e.response}" for e in examples}
    for i, name in enumerate(found.texts):
        ends = []
        for lm, side in zip((source, tiny_target), found.sides, strict=True):
            read = lm.tokenizer(texts[name], return_offsets_mapping=True)
            assert side.ids[i] == read["input_ids"][: len(side.ids[i])]
            assert min(side.at[i]) > 0
            ends.append([read["offset_mapping"][at][1] for at in side.at[i]])
        assert ends[0] == ends[1]
    assert len(found) >= 20


def test_texts_longer_than_a_context_are_cut(make_lm, tiny_target, examples):
    short = make_lm("llama", "source")
    short.dims = replace(short.dims, context=15)
    found = draw_positions((short, tiny_target), examples, STYLE, 500, gen())
    assert max(at for text in found.sides[0].at for at in text) == 14


def test_too_few_positions_are_refused(tiny_source, tiny_target, examples):
    with pytest.raises(
        DataError, match=r"1 texts give \d+ token positions in 1 of them, .*; expected 16 positions in two texts"
    ):
        draw_positions((tiny_source, tiny_target), examples[:1], STYLE, 20, gen())


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3"])
def test_grams_are_those_of_hooked_outputs(make_lm, examples, tmp_path, family):
    lm = make_lm(family, "source")
    side = draw_positions((lm,), examples, STYLE, 20, gen()).sides[0]
    in_memory, kept = Grams(lm, side), Grams(LM(lm.name, device="cpu", memo=tmp_path), side, held=1)
    hooked = outputs(lm, side)
    for module in MODULES:
        assert hooked[0, module].shape == (20, num_features(lm.dims, module))
        expected = torch.stack([gram(hooked[layer, module]) for layer in range(3)])
        assert torch.allclose(in_memory.stack(module), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
        assert torch.equal(kept.stack(module), in_memory.stack(module))  # layer by layer, on disk
    assert len(list(tmp_path.glob("*.safetensors"))) == 3 * len(MODULES)


def test_grams_are_read_again_and_made_again_where_damaged(tiny_source, examples, tmp_path, monkeypatch):
    side = draw_positions((tiny_source,), examples, STYLE, 20, gen()).sides[0]
    lm = LM(tiny_source.name, device="cpu", memo=tmp_path)
    first = Grams(lm, side).stack("down")
    with monkeypatch.context() as patch:
        patch.setattr(LM, "_load", refuse_load)
        assert torch.equal(Grams(lm, side).stack("down"), first)
    path = sorted(tmp_path.glob("*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:-4] + b"abcd")
    assert torch.equal(Grams(lm, side).stack("down"), first)
    assert not temporaries(tmp_path)


def test_what_grams_took_is_theirs_or_unknown(tiny_source, examples, tmp_path, monkeypatch):
    side = draw_positions((tiny_source,), examples, STYLE, 20, gen()).sides[0]

    def grams(name: str) -> Grams:
        return Grams(LM(tiny_source.name, device="cpu", memo=tmp_path / name), side, held=1)

    with counted() as count:
        grams("whole").prepare(["down"])
    with watched() as memo:
        grams("whole").stack("down")
    assert memo.found.flop == pytest.approx(count.flop)
    assert count.flop > 0
    keep, stopped = Grams._keep, grams("stopped")

    def once(self, place, found_PP):
        if list((tmp_path / "stopped").glob("*.safetensors")):
            raise KeyboardInterrupt
        keep(self, place, found_PP)

    with monkeypatch.context() as patch:
        patch.setattr(Grams, "_keep", once)
        with pytest.raises(KeyboardInterrupt):
            stopped.prepare(["down"])
    stopped.prepare(["down"])
    with watched() as memo:
        stopped.stack("down")
    assert memo.found.flop is None


def test_outputs_that_are_not_finite_are_refused(make_lm, examples, tmp_path):
    from safetensors.torch import load_file, save_file

    lm = make_lm("llama", "target")
    for file in LM(lm.name).checkpoint.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3] = torch.inf
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    broken = LM(tmp_path, device="cpu", memo=tmp_path / "memo")
    side = draw_positions((broken,), examples, STYLE, 20, gen()).sides[0]
    with pytest.raises(UnsupportedModelError, match="activations are not finite"):
        Grams(broken, side).stack("up")


def test_layer_similarity_is_cka_of_block_outputs(tiny_source, tiny_target, folder, tmp_path, monkeypatch):
    of_task = task("gsm8k", str(folder)).located_with(task("gsm8k", str(folder)).split("align"))
    models = [LM(lm.name, device="cpu", memo=tmp_path) for lm in (tiny_source, tiny_target)]
    found = layer_similarity(*models, of_task, STYLE, 30)
    fixed = draw_positions(models, of_task.location, STYLE, 30, gen())
    for kind, module in (("ffn", "down"), ("attention", "o")):
        assert found[kind].shape == (3, 2)
        stacks = [Grams(lm, side).stack(module) for lm, side in zip(models, fixed.sides, strict=True)]
        assert torch.equal(found[kind], CKA(*stacks))
    monkeypatch.setattr(LM, "_load", refuse_load)
    again = layer_similarity(
        RandomSource(models[0], seed=5), models[1], of_task, STYLE, 30
    )  # located on the real source
    assert all(torch.equal(again[kind], found[kind]) for kind in found)


def test_analysis_of_a_pair(pkt, recipe, folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    args = (
        "--set",
        "analysis.positions=50",
        "--set",
        "analysis.permutations=20",
        "--set",
        "analysis.groups=5",
        "--set",
        "analysis.modules=[up, residual]",
        "--set",
        "analysis.measures=[cka, ridge]",
    )
    path = recipe(task={"name": "gsm8k", "data": str(folder), "prompt_style": "plain"})
    done = pkt("analyze", "representation", path, "--out", out, *args)
    assert done.code == 0, done.err
    found = json.loads((out / "representation.json").read_text(encoding="utf-8"))
    tables = found["tables"]
    assert found["sentence"].startswith("Mean debiased CKA over all pairs of layers: ")
    assert len(tables["pairs"]) == 2 * 2 * 2 * 3 * 2
    assert len(tables["modules"]) == 2 * 2 * 2
    assert len(tables["best"]) == 2 * 2 * 2 * 2
    by_measure = {row["measure"]: row for row in tables["modules"] if (row["role"], row["module"]) == ("source", "up")}
    assert by_measure["cka"]["published_mean"] == 0.691
    assert by_measure["ridge"]["published_mean"] is None
    for mean in tables["modules"]:
        rows = [row for row in tables["pairs"] if all(row[k] == mean[k] for k in ("role", "module", "measure"))]
        values = torch.tensor([row["value"] for row in rows], dtype=torch.float64)
        assert mean["mean"] == pytest.approx(float(values.mean()))
        assert mean["sd"] == pytest.approx(float(values.std(correction=0)))
        assert all(row["low"] <= row["value"] <= row["high"] for row in rows)
        best = [row for row in tables["best"] if all(row[k] == mean[k] for k in ("role", "module", "measure"))]
        assert [row["value"] for row in best] == values.view(3, 2).max(0).values.tolist()
        assert all(row["lead"] >= 0 and row["second"] != row["source_layer"] for row in best)
    with (out / "representation-pairs.csv").open(encoding="utf-8") as f:
        assert len(list(csv.DictReader(f))) == len(tables["pairs"])
    page = (out / "representation.html").read_text(encoding="utf-8")
    assert found["sentence"] in page
    assert page.count("<svg") == 2 + 1 + 2 + 1  # means, source less untrained, maps of the source and of the untrained
    monkeypatch.setattr(LM, "_load", refuse_load)
    more = pkt("analyze", "representation", path, "--out", out, *args, "--set", "analysis.ridge=1.0")
    assert more.code == 0, more.err  # the Grams are there
    again = json.loads((out / "representation.json").read_text(encoding="utf-8"))["tables"]["pairs"]
    for before, after in zip(tables["pairs"], again, strict=True):
        assert (before == after) == (before["measure"] != "ridge")


def test_an_untrained_model_is_looked_into_like_the_source(tiny_source, examples, tmp_path):
    lm = LM(tiny_source.name, device="cpu", memo=tmp_path)
    side = draw_positions((lm,), examples, STYLE, 20, gen()).sides[0]
    made = [Grams(handle, side).stack("o") for handle in (lm, Untrained(lm, 0), Untrained(lm, 1))]
    assert len(list(tmp_path.glob("*.safetensors"))) == 9
    for i, one in enumerate(made):
        assert not any(torch.allclose(one, other, rtol=0.1) for other in made[:i])
    again = Grams(Untrained(tiny_source, 1), side)  # without a memo
    assert torch.equal(again.stack("o"), made[2])


def test_a_specialist_beside_the_source(pkt, recipe, folder, tmp_path, make_lm):
    out = tmp_path / "out"
    given = ("positions=50", "permutations=20", "groups=5", "modules=[up]", "measures=[cka]", "untrained=false")
    args = [f"analysis.{text}" for text in given]
    path = recipe(task={"name": "gsm8k", "data": str(folder), "prompt_style": "plain"})
    other = make_lm("qwen2", "source").name

    def analyze(*more):
        return pkt(
            "analyze", "representation", path, "--out", out, *(a for text in (*args, *more) for a in ("--set", text))
        )

    assert analyze().code == 0
    alone = json.loads((out / "representation.json").read_text(encoding="utf-8"))["tables"]
    assert analyze(f"analysis.specialist={other}").code == 0
    found = json.loads((out / "representation.json").read_text(encoding="utf-8"))
    tables = found["tables"]
    assert [row for row in tables["pairs"] if row["role"] == "source"] == alone["pairs"]
    means = {row["role"]: row["mean"] for row in tables["modules"]}
    (difference,) = tables["differences"]
    assert difference["value"] == pytest.approx(means["specialist"] - means["source"])
    assert difference["low"] < difference["value"] < difference["high"]
    assert len(tables["layer_differences"]) == 6
    assert "The specialist " in found["sentence"]
    assert other in (out / "representation.html").read_text(encoding="utf-8")
    assert (out / "representation-differences.csv").is_file()
    assert analyze().code == 0
    assert {path.name for path in out.glob("*.csv")} == {f"representation-{name}.csv" for name in alone}
    analyze(f"analysis.specialist={make_lm('llama', 'source').name}").refuses("analysis.specialist", "source itself")


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ("analysis.modules=[upp]", ["analysis.modules", "'up'", "found 'upp'"]),
        ("analysis.modules=[]", ["analysis.modules"]),
        ("analysis.measures=[cka, cka]", ["analysis.measures", "name each once"]),
        ("analysis.positions=3", ["analysis.positions", "48"]),
        ("analysis.ridge=0", ["analysis.ridge", "greater than 0"]),
        ("analysis.splits=[extract]", ["2 texts give", "analysis.splits"]),
        ("analysis.splits=[tests]", ["analysis.splits", "'test'"]),
        ("analysis.position=3", ["unknown key 'analysis.position'", "positions"]),
        ("analysis.specialist=no/such", ["no/such"]),
    ],
)
def test_bad_options_are_refused_in_one_line(pkt, recipe, folder, tmp_path, given, parts):
    path = recipe(task={"name": "gsm8k", "data": str(folder), "prompt_style": "plain"})
    out = tmp_path / "out"
    pkt("analyze", "representation", path, "--out", out, "--set", given).refuses(*parts)
    assert not out.exists() or not list(out.iterdir())


def test_the_layers_of_an_expanded_target_find_their_own(tmp_path):
    """The source was made from the target, layer by layer, and trained on: the truth is known."""
    models = [LM(f"nano/{name}", device="cpu", memo=tmp_path) for name in ("lineage-easy", "target")]
    found = layer_similarity(*models, task("nano/mmlu"), STYLE, 256)
    for similarity in found.values():
        assert similarity.argmax(0).tolist() == [0, 1, 2, 3]
    assert found["ffn"].diagonal().min() > 0.7


def test_a_missing_split_is_named(pkt, recipe, data, tmp_path):
    (data / "splits" / "gsm8k" / "train.jsonl").unlink()
    path = recipe(task={"name": "gsm8k", "data": str(data), "prompt_style": "plain"})
    pkt("analyze", "representation", path, "--out", tmp_path / "out").refuses("train.jsonl")


@pytest.mark.parametrize(
    ("layers", "climbs"), [([0, 1, 2, 3], True), ([0, 2], True), ([4, 4, 4, 5], False), ([1, 0], False), ([2], False)]
)
def test_layers_that_stay_are_not_in_the_order_of_depth(layers, climbs):
    assert is_in_order(layers) is climbs


@pytest.mark.parametrize(
    ("low", "said"),
    [
        ((-0.2, -0.1), "it leads by more than its interval in no module: up (−0.150) and v (−0.050)."),
        ((-0.2, 0.1), "it leads by more than its interval in v (+0.150), not in up (−0.150)."),
        ((0.1, 0.1), "it leads by more than its interval in up (+0.150) and v (+0.150)."),
    ],
)
def test_the_sentence_says_no_more_of_an_untrained_source_than_is_certain(low, said):
    modules = [
        {"role": "source", "module": name, "measure": "cka", "mean": 0.4, "low": 0.3, "null_95": 0.1}
        for name in ("up", "v")
    ]
    differences = [
        {
            "role": "source",
            "less": "untrained",
            "module": name,
            "measure": "cka",
            "value": at + 0.05,
            "low": at,
            "high": at + 0.1,
        }
        for name, at in zip(("up", "v"), low, strict=True)
    ]
    text = sentence({"modules": modules, "best": [], "differences": differences})
    assert f"Over a source with new, untrained weights {said}" in text


def test_the_sentence_measures_each_module_by_its_own_chance():
    modules = [
        {"role": "source", "module": "o", "measure": "ridge", "mean": -0.3, "low": -0.4, "null_95": -0.05},
        {"role": "source", "module": "residual", "measure": "ridge", "mean": -0.5, "low": -0.6, "null_95": -1.2},
    ]
    text = sentence({"modules": modules, "best": []})
    assert "above its own chance level with the whole interval: residual" in text
