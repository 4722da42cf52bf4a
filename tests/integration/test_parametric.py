"""The parametric analysis: starts as methods train from them, tables, page, and what it refuses."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from pkt.align.lora import adapted
from pkt.analyses.parametric import STARTS, ParametricConfig, _starts
from pkt.machine import Machine
from pkt.methods import METHODS
from pkt.models.families import LINEAR
from pkt.models.lm import LM
from pkt.recipe_files import load_recipe
from pkt.report.analysis_page import page
from pkt.run import Run

SMALL = {"rank": 4, "draws": 3, "ranks": [2, 4, 8]}
SET = [f"--set=analysis.{name}={value}" for name, value in SMALL.items()]
SEEKING = {"name": "seeking", "rank": 4, "epochs": 1, "batch_size": 2, "micro_batch": 2, "lr": 1e-30, "dropout": 0.0}


@pytest.fixture
def run_of(recipe, tmp_path):
    """`run_of(method=...)`: a run in a new folder."""

    def make(**sections):
        return Run(load_recipe(str(recipe(**sections))), tmp_path / "run", Machine("cpu"))

    return make


@pytest.fixture
def no_page(monkeypatch):
    """The page costs more time than the analysis."""
    monkeypatch.setattr("pkt.report.analysis_page.page", lambda found: found["sentence"])


@pytest.fixture(scope="module")
def analyzed(tmp_path_factory, recipe, make_lm):
    """Folder of an analysis of a pair whose heads can be coupled; the recipe's method is LaTen."""
    from pkt.analyzing import from_names

    source = make_lm("llama", "source", num_key_value_heads=3).name
    folder = tmp_path_factory.mktemp("analyzed") / "out"
    sets = [text.removeprefix("--set=") for text in SET]
    from_names("parametric", str(recipe(source=source)), sets, folder, Machine("cpu"))
    return folder


@pytest.fixture
def found(analyzed):
    return json.loads((analyzed / "parametric.json").read_text(encoding="utf-8"))


def test_every_method_that_trains_adapters_is_there():
    methods = [METHODS.get(name) for name in METHODS.names()]
    assert {method.name for method in methods if method.start} == {method for method, _ in STARTS.values()}


@pytest.mark.parametrize("name", STARTS)
def test_the_start_is_the_one_that_the_method_trains_from(run_of, make_lm, name):
    """With a learning rate of nothing, the second half of the change is the start taken away, bit for bit."""
    source = make_lm("llama", "source", num_key_value_heads=3).name
    run = run_of(source=source, method={**SEEKING, "alpha": 8.0}, seed=5)
    start = next(start for start in _starts(run, ParametricConfig(draws=3))[0] if start.name == name)
    pairs = start.pairs(run)
    gen = torch.Generator().manual_seed(5)
    delta = start.method(run.source, run.target, run.task, start.cfg, gen, style=run.style)
    assert delta.changes.keys() == set(adapted(run.target, start.cfg))
    for key, change in delta.changes.items():
        if name == "lora":
            assert pairs is None
            assert float(change.entries().abs().max()) < 1e-20
            continue
        assert torch.equal(change.a[4:], pairs[key].a)
        assert torch.equal(change.b[:, 4:], -2 * pairs[key].b)
    if start.draws > 1:
        again, other = start.pairs(run), start.pairs(run, 1)
        assert torch.equal(pairs[0, "up"].a, again[0, "up"].a)
        assert not torch.equal(pairs[0, "up"].a, other[0, "up"].a)


def test_tables_hold_every_start_and_the_random_block_stands_in_each(found, analyzed):
    tables = found["tables"]
    for name in ("modules", "predictions", "cosines", "angles", "ranks"):
        inits = {row["init"] for row in tables[name]}
        assert inits == set(STARTS) - ({"lora"} if name == "ranks" else set()), name
    matrices = {row["matrix"] for row in tables["energy"]}
    assert matrices == {"target", "seeking", "seeking_coupled", "random_init", "random_block"}
    assert {row["random_mean"] for row in tables["against_random"]} - {None}
    assert {(row["layer"], row["module"]) for row in tables["cosines"]} == {(i, p) for i in range(2) for p in LINEAR}
    counts = {init: sum(row["init"] == init for row in tables["cosines"]) for init in STARTS}
    assert counts == {init: 14 * (3 if init.startswith("random") else 1) for init in STARTS}
    for name, rows in tables.items():
        text = (analyzed / f"parametric-{name}.csv").read_text(encoding="utf-8")
        assert len(list(csv.DictReader(io.StringIO(text)))) == len(rows), name


def test_numbers_of_the_tables(found, make_lm):
    tables, target = found["tables"], make_lm("llama", "target")
    for row in tables["cosines"]:
        if row["init"] == "lora":
            assert (row["own"], row["remainder"], row["start_norm"], row["remainder_norm"]) == (None, None, 0, 1)
        elif row["init"] == "pissa":
            values = torch.linalg.svdvals(target.part(row["layer"], row["module"]).double()).square()
            assert row["own"] == pytest.approx(float((values[:4].sum() / values.sum()).sqrt()), abs=1e-5)
            assert row["predicted_own"] == pytest.approx(row["own"], abs=1e-5)
            assert row["remainder"] == pytest.approx(0, abs=1e-5)
        else:
            assert row["predicted_remainder"] == pytest.approx(-row["start_norm"] / row["remainder_norm"])
            assert row["remainder"] - row["predicted_remainder"] == pytest.approx(row["own"] / row["remainder_norm"], abs=1e-9)  # fmt: skip
            assert abs(row["own"]) < 0.25
    norms = {(r["init"], r["layer"], r["module"]): r["start_norm"] for r in tables["cosines"] if r["draw"] == 0}
    for (init, layer, module), norm in norms.items():
        if init == "random_init":
            assert norm == pytest.approx(norms["seeking", layer, module], rel=1e-4)
    assert all(row["mean_square"] == pytest.approx(1, abs=1e-4) for row in tables["angles"] if row["init"] == "pissa")
    assert all(row["kept"] == pytest.approx(1, abs=1e-5) for row in tables["energy"] if row["rank"] == (16 if row["module"] in "kv" else 32))  # fmt: skip
    for row in tables["angles"]:
        assert row["chance_mean_square"] == 4 / row["dimension"]


def test_the_sweep_agrees_with_the_starts_at_their_rank(found):
    at_rank = [row for row in found["tables"]["cosines"] if row["draw"] == 0 and row["init"] != "lora"]
    sweep = {(r["init"], r["layer"], r["module"]): r for r in found["tables"]["ranks"] if r["rank"] == 4}
    assert len(sweep) == len(at_rank) == 70
    for row in at_rank:
        other = sweep[row["init"], row["layer"], row["module"]]
        for column in ("own", "predicted_own", "remainder", "start_norm", "remainder_norm"):
            assert other[column] == pytest.approx(row[column], abs=2e-5), (row, column)


def test_the_sweep_agrees_with_starts_of_another_rank(run_of, found, make_lm):
    """Noise is given the norms of Seeking's start at that rank, as the method would."""
    from pkt.similarity.weights import start_cosines

    run = run_of(source=make_lm("llama", "source", num_key_value_heads=3).name, method={"name": "laten"})
    starts, _ = _starts(run, ParametricConfig(rank=8, alpha=32.0, draws=3))
    sweep = {(r["init"], r["layer"], r["module"]): r for r in found["tables"]["ranks"] if r["rank"] == 8}
    for start in starts:
        if start.name == "lora":
            continue
        for key, pair in start.pairs(run).items():
            direct = start_cosines(run.target.part(*key), start.cfg.scaling * pair.entries())
            row = sweep[start.name, *key]
            assert (row["own"], row["remainder"]) == pytest.approx((direct.own, direct.remainder), abs=2e-5)


@pytest.mark.usefixtures("no_page")
def test_the_same_recipe_gives_the_same_bytes_and_locates_once(pkt, recipe, tmp_path, monkeypatch):
    path = recipe()
    for name in ("a", "b"):
        assert pkt("analyze", "parametric", path, "--out", tmp_path / name, *SET).code == 0
    one, two = ((tmp_path / name / "parametric.json").read_bytes() for name in ("a", "b"))
    assert one == two
    assert (tmp_path / "a" / "parametric.html").read_bytes() == (tmp_path / "b" / "parametric.html").read_bytes()
    monkeypatch.setattr(LM, "_load", lambda *_: pytest.fail("a model was loaded"))
    again = pkt("analyze", "parametric", path, "--out", tmp_path / "a", *SET[:1], "--set=analysis.draws=4")
    assert again.code == 0  # other options, the same sensitivities
    assert json.loads((tmp_path / "a" / "parametric.json").read_text())["options"]["draws"] == 4


@pytest.mark.usefixtures("no_page")
def test_source_and_target_are_never_in_memory_together(pkt, recipe, tmp_path, monkeypatch):
    loaded, load = [], LM._load
    monkeypatch.setattr(LM, "_load", lambda lm, dtype=None: loaded.append(lm.name) or load(lm, dtype))
    path = recipe()
    assert pkt("analyze", "parametric", path, "--out", tmp_path / "a", *SET).code == 0
    assert set(loaded) == {load_recipe(str(path)).source.name}


@pytest.mark.usefixtures("no_page")
def test_what_is_left_out_is_said(pkt, recipe, tmp_path):
    done = pkt("analyze", "parametric", recipe(), "--out", tmp_path / "a", *SET)
    assert done.out.startswith("Seeking's start ")
    assert "coupled blocks is left out: whole heads cannot be taken" in done.out
    assert "LoRA's own start has B = 0" in done.out
    tables = json.loads((tmp_path / "a" / "parametric.json").read_text())["tables"]
    assert "seeking_coupled" not in {row["init"] for row in tables["cosines"]}


@pytest.mark.usefixtures("no_page")
def test_options_come_from_the_recipes_method_where_it_trains_adapters(pkt, recipe, tmp_path):
    method = {**SEEKING, "rank": 3, "parts": ["up", "down"], "embeddings": True}
    path = recipe(method=method)
    assert pkt("analyze", "parametric", path, "--out", tmp_path / "a", "--set=analysis.draws=3").code == 0
    rows = json.loads((tmp_path / "a" / "parametric.json").read_text())["tables"]["cosines"]
    assert {row["rank"] for row in rows} == {3}
    assert {row["module"] for row in rows} == {"up", "down", "embed", "unembed"}
    refused = pkt("analyze", "parametric", path, "--out", tmp_path / "b", "--set=analysis.rank=2")
    refused.refuses("analysis.rank is given", "'seeking' of the recipe has that option itself", "--set method.rank=")
    assert not (tmp_path / "b").exists()


@pytest.mark.usefixtures("no_page")
def test_tied_embeddings_are_left_out(pkt, recipe, make_lm, tmp_path):
    tied = make_lm("llama", "target", tie_word_embeddings=True).name
    more = (*SET, "--set=analysis.embeddings=true")
    assert pkt("analyze", "parametric", recipe(target=tied), "--out", tmp_path / "a", *more).code == 0
    rows = json.loads((tmp_path / "a" / "parametric.json").read_text())["tables"]["cosines"]
    assert {row["module"] for row in rows} == set(LINEAR)


def test_bad_pairs_and_options_are_refused_with_names(pkt, recipe, make_lm, tmp_path):
    def refused(*sets, **sections):
        done = pkt("analyze", "parametric", recipe(**sections), "--out", tmp_path / "no", *SET, *sets)
        assert not (tmp_path / "no").exists()
        return done

    refused("--set=analysis.rank=17").refuses("analysis.rank is 17", "k_proj.weight", "use a rank of at most 16")
    refused("--set=analysis.ranks=[2,2]").refuses("analysis.ranks is [2, 2]", "each once")
    refused("--set=analysis.ranks=[0]").refuses("analysis.ranks is [0]", "at least 1")
    refused("--set=analysis.draws=2").refuses("analysis.draws", "greater than or equal to 3")
    refused("--set=analysis.drawz=5").refuses("drawz", "draws")
    refused("--set=analysis.parts=[up,up]").refuses("analysis.parts is ['up', 'up']", "every part once")
    fused = make_lm("phi3", "target").name
    refused(target=fused).refuses("share one matrix in phi3", 'set analysis.parts=["o", "down"]')
    small = make_lm("llama", "target").name
    refused(source=small, target=make_lm("llama", "source").name).refuses("every target layer needs a source layer")


@pytest.mark.usefixtures("no_page")
def test_parts_with_matrices_of_their_own_can_be_analysed_in_a_fused_family(pkt, recipe, make_lm, tmp_path):
    more = ("--set=analysis.parts=[o,down]",)
    path = recipe(source=make_lm("phi3", "source").name, target=make_lm("phi3", "target").name)
    assert pkt("analyze", "parametric", path, "--out", tmp_path / "a", *SET, *more).code == 0
    rows = json.loads((tmp_path / "a" / "parametric.json").read_text())["tables"]["cosines"]
    assert {row["module"] for row in rows} == {"o", "down"}


def test_a_rank_that_leaves_nothing(pkt, recipe, tmp_path):
    """At full rank PiSSA's start is the weight; the remainder has no direction, and the page is still made."""
    more = (
        "--set=analysis.parts=[k,v]",
        "--set=analysis.rank=16",
        "--set=analysis.ranks=[16]",
        "--set=analysis.draws=3",
    )
    assert pkt("analyze", "parametric", recipe(), "--out", tmp_path / "a", *more).code == 0
    rows = json.loads((tmp_path / "a" / "parametric.json").read_text())["tables"]["cosines"]
    assert all(row["remainder"] is None and row["own"] == pytest.approx(1) for row in rows if row["init"] == "pissa")


def test_a_zero_matrix_and_a_source_as_large_as_the_target(pkt, recipe, make_lm, tmp_path):
    shutil.copytree(make_lm("llama", "target").checkpoint.folder, tmp_path / "zeroed")
    file = tmp_path / "zeroed" / "model.safetensors"
    held = load_file(file)
    held["model.layers.0.self_attn.o_proj.weight"].zero_()
    save_file(held, file, {"format": "pt"})
    path = recipe(source=make_lm("llama", "target", rms_norm_eps=1.1e-5).name, target=str(tmp_path / "zeroed"))
    assert pkt("analyze", "parametric", path, "--out", tmp_path / "a", *SET).code == 0
    found = json.loads((tmp_path / "a" / "parametric.json").read_text())
    zero = [row for row in found["tables"]["cosines"] if (row["layer"], row["module"]) == (0, "o")]
    assert {row["own"] for row in zero} == {None}
    assert any("every block is the whole matrix" in note for note in found["notes"])
    assert (tmp_path / "a" / "parametric.html").is_file()


def test_the_page(found, analyzed):
    text = page(found)
    assert text == (analyzed / "parametric.html").read_text(encoding="utf-8")
    names = ["own-cosines", "remainder-cosines", "signatures", "against-random", "modules-own", "modules-remainder",
             "angles", "energy", "ranks"]  # fmt: skip
    assert re.findall(r'<figure id="([^"]*)"', text) == names
    assert text.count("<svg") == len(names)
    assert text.count("<b>By chance:</b>") == len(names)
    assert "random block" in text
    assert "2.3\u00a0% and 2.3\u00a0% of the energy kept" in text
    assert "0.115 and 0.126 of the weight" in text
    for origin in re.findall(r'class="origin">from ([^<]*)<', text):
        assert all((analyzed / file).is_file() for file in origin.split(" and "))
    assert not re.search(r'(?:src|href)="(?!#)', text)
