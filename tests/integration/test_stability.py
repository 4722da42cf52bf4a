"""`pkt analyze stability`: what it compares is what the package locates, trains and scores, and what is done stays done."""

from __future__ import annotations

import csv
import json
import shutil
from html import unescape

import pytest
from run_folders import make_data, message_row, write_lines

from pkt.align.source_start import locate_blocks
from pkt.analyses.stability import StabilityConfig, dtypes_of
from pkt.analyzing import analyze, split_overrides
from pkt.errors import ConfigError, DataError
from pkt.extract.jaccard import chance_of_sets, jaccard
from pkt.extract.layers import top_scores
from pkt.extract.location import located_neurons
from pkt.files import write_text
from pkt.inject.delta import Delta
from pkt.machine import Machine
from pkt.models.families import KINDS
from pkt.models.lm import LM
from pkt.recipe_files import load_recipe
from pkt.report.analysis_page import page
from pkt.report.stability import figures
from pkt.run import Run
from pkt.stability.comparisons import ALL, Pair, agreement_rows, halves
from pkt.stability.located import Place, locations_of
from pkt.tasks.formats import FORMATS

FEW = ["analysis.seeds=2", "analysis.tasks=[nano/gsm8k]", "analysis.dtypes=[float32,bfloat16]"]
LATEN = {"name": "laten", "init": "fan_in", "lr": 1e-2, "norm_weight": 1.0, "steps": 2, "transfer_rate": 0.2}


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """Four examples to locate with."""
    folder = make_data(tmp_path_factory.mktemp("data"))
    rows = [message_row("flurbs", i) for i in (1, 2, 3, 4)]
    write_lines(folder / "splits" / "gsm8k" / "extract.jsonl", rows)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _quick(_short):
    """Short answers, few nano examples, and pages only where they are looked at."""
    from pkt.nano import world

    few = {name: rows[:3] for name, rows in world.splits("gsm8k").items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FORMATS, "gsm8k", _short)
        patch.setattr("pkt.report.html.write", lambda folder: write_text(folder / "report.html", "page"))
        patch.setattr("pkt.report.analysis_page.write", lambda found, folder: folder / "stability.html")
        patch.setattr(world, "splits", lambda name: few)
        yield


@pytest.fixture(scope="module")
def make(recipe, four):
    """`make(folder, method)`: the analysis in a folder; returns its page."""

    def run(folder, method=LATEN, overrides=FEW, **sections):
        task = {"name": "gsm8k", "data": str(four), "prompt_style": "plain"}
        cfg, rest = split_overrides("stability", overrides)
        asked = load_recipe(str(recipe(task=task, method=method, **sections)), rest)
        return analyze("stability", asked, cfg, folder, Machine("cpu"))

    return run


@pytest.fixture(scope="module")
def analysed(make, tmp_path_factory):
    return make(tmp_path_factory.mktemp("stable") / "out").parent


@pytest.fixture
def done(analysed, tmp_path):
    """A copy of the folder of a finished analysis."""
    return shutil.copytree(analysed, tmp_path / "out")


def tables(folder):
    return json.loads((folder / "stability.json").read_text())["tables"]


@pytest.fixture
def loads(monkeypatch):
    """Models in memory now, the most at a time, and the dtypes that were loaded."""
    seen = {"now": 0, "most": 0, "dtypes": []}
    load, release = LM._load, LM._release

    def counted(self, dtype=None):
        seen["now"] += 1
        seen["most"] = max(seen["most"], seen["now"])
        seen["dtypes"].append(self.dtype)
        return load(self, dtype)

    def let_go(self):
        seen["now"] -= 1
        release(self)

    monkeypatch.setattr(LM, "_load", counted)
    monkeypatch.setattr(LM, "_release", let_go)
    return seen


def test_the_numbers_are_those_of_what_was_located_and_made(analysed, tiny_source, tiny_target):
    found = tables(analysed)
    rows = {(r["between"], r["kind"], r["model"], r["layer"]): r for r in found["jaccard"]}
    assert {key[0] for key in rows} == {"examples", "seeds", "tasks", "dtypes"}
    row = rows["examples", "ffn", "source", ALL]
    k = int(tiny_target.dims.ffn * 0.2)
    assert (row["chosen"], row["of"], row["pairs"]) == (k, tiny_source.dims.ffn, 6)
    assert row["chance"] == pytest.approx(chance_of_sets(k, k, tiny_source.dims.ffn).mean)
    assert row["corrected"] == pytest.approx((row["mean"] - row["chance"]) / (1 - row["chance"]))
    layers = [r["mean"] for key, r in rows.items() if key[:3] == ("examples", "ffn", "source") and key[3] != ALL]
    assert len(layers) == tiny_source.dims.layers
    assert row["mean"] == pytest.approx(sum(layers) / len(layers))
    assert rows["dtypes", "ffn", "target", ALL]["mean"] > rows["examples", "ffn", "target", ALL]["mean"]

    deltas = [Delta.load(analysed / "seeds" / f"seed-{seed}" / "delta.safetensors") for seed in (0, 1)]
    whole = next(r for r in found["deltas"] if r["part"] == "all")
    flat = [[v for key in sorted(d.changes) for v in d.changes[key].values.flatten().tolist()] for d in deltas]
    norms = [sum(v * v for v in one) ** 0.5 for one in flat]
    assert whole["cosine"] == pytest.approx(
        sum(a * b for a, b in zip(*flat, strict=True)) / norms[0] / norms[1], abs=1e-6
    )
    assert whole["lines_jaccard"] == 1  # both runs locate on the same examples
    assert {(r["seed"], r["layer"], r["part"]) for r in found["ranges"]} == {
        (seed, *key) for seed, d in enumerate(deltas) for key in d.changes
    }
    for kind in KINDS:
        held = [r for r in found["layers"] if r["kind"] == kind]
        assert sum(r["examples"] for r in held) == 4 * tiny_target.dims.layers
        chosen = [r["source_layer"] for r in held if r["chosen"]]
        assert chosen == [source for source, _ in deltas[0].provenance["layers"][kind]["map"]]
        assert {r["chance"] for r in held} == {tiny_target.dims.layers / tiny_source.dims.layers}


def test_scores_over_seeds_are_those_of_the_runs(analysed):
    found = tables(analysed)
    lines = [
        [json.loads(line) for line in (analysed / "seeds" / f"seed-{s}" / "scores.jsonl").read_text().splitlines()]
        for s in (0, 1)
    ]
    means = [
        sum(r["score"] for r in of if r["arm"] == "result") / sum(r["arm"] == "result" for r in of) for of in lines
    ]
    row = next(r for r in found["scores"] if r["tier"] == "all")
    assert (row["min"], row["max"]) == (min(means), max(means))
    assert row["variance"] == pytest.approx((means[0] - means[1]) ** 2 / 2)
    assert {line["arm"] for line in lines[0]} == {"target", "result"}


def test_page_and_csv_show_every_table(analysed):
    found = json.loads((analysed / "stability.json").read_text())
    text = page(found)
    for name in ("agreement", "by-layer", "tasks", "layers", "scores", "deltas", "ranges"):
        assert f'<figure id="{name}">' in text
    assert "<script" not in text
    assert found["sentence"] in unescape(text)
    for name, rows in found["tables"].items():
        with (analysed / f"stability-{name}.csv").open() as file:
            assert len(list(csv.DictReader(file))) == len(rows)
            assert len({tuple(row) for row in rows}) == 1


def test_located_scores_are_shared_by_all_seeds(analysed):
    assert list((analysed / "neurons").iterdir())
    assert not list((analysed / "seeds").glob("*/neurons"))


def test_a_second_call_runs_nothing(done, make, loads):
    before = {path: path.stat().st_mtime_ns for path in done.rglob("*") if path.is_file()}
    make(done)
    assert loads["most"] == 0
    again = {path for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert {path.name for path in again} <= {"recipe.yaml", "env.json", "overlap.json"}
    assert {path.parent for path in again} <= {done}


def test_lost_numbers_are_made_again_from_finished_runs(done, make, loads):
    text = (done / "stability.json").read_text()
    (done / "stability.json").unlink()
    make(done)
    assert (done / "stability.json").read_text() == text
    assert loads["most"] == 0


def test_another_seed_runs_that_seed_alone(done, make):
    deltas = [done / "seeds" / f"seed-{seed}" / "delta.safetensors" for seed in (0, 1, 2)]
    before = [path.stat().st_mtime_ns for path in deltas[:2]]
    make(done, overrides=[*FEW[1:], "analysis.seeds=3"])
    assert [path.stat().st_mtime_ns for path in deltas[:2]] == before
    assert len([row for row in tables(done)["deltas"] if row["part"] == "all"]) == 3


def run_of(recipe, data, folder, method=LATEN, **sections) -> Run:
    task = {"name": "gsm8k", "data": str(data), "prompt_style": "plain"}
    return Run(load_recipe(str(recipe(task=task, method=method, **sections))), folder, Machine("cpu"))


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_sets_of_single_examples_are_those_that_per_example_takes(recipe, four, tmp_path, rate):
    run = run_of(recipe, four, tmp_path / "out", {**LATEN, "transfer_rate": rate, "locate": "per_example"})
    locations = locations_of(run)
    of_source, of_target = located_neurons(run.source, run.target, run.task, run.options, run.style)
    for e in range(4):
        found = locations.on_examples([e])
        for model, sets in (("source", of_source[e]), ("target", of_target[e])):
            for kind in KINDS:
                taken = {layer: index for layer, index in enumerate(sets[kind]) if index}
                assert taken == {layer: found.chosen[Place(model, kind, layer)] for layer in taken}
                assert list(taken) == (found.layers[kind] if model == "source" else [0, 1])


def test_all_examples_together_are_what_the_task_locates(recipe, four, tmp_path):
    run = run_of(recipe, four, tmp_path / "out")
    locations = locations_of(run)
    assert locations.on_examples(range(4)) == locations.on_task(run.task)


def test_equal_choices_have_index_1_and_pairs_are_averaged(recipe, four, tmp_path):
    locations = locations_of(run_of(recipe, four, tmp_path / "out"))
    one, other = locations.on_examples([0]), locations.on_examples([1])
    rows, pairs = agreement_rows(locations, "tasks", [Pair("a", "a", (one, one)), Pair("a", "b", (one, other))])
    row = next(r for r in rows if (r["model"], r["kind"], r["layer"]) == ("target", "ffn", 1))
    place = Place("target", "ffn", 1)
    alone = jaccard(one.chosen[place], other.chosen[place])
    assert (row["mean"], row["min"], row["max"]) == ((1 + alone) / 2, alone, 1)
    assert {r["jaccard"] for r in pairs if r["other"] == "a"} == {1}


def test_halves_are_disjoint_and_drawn_by_the_seed():
    for num in (4, 7):
        one, other = halves(num, 0)
        assert len(one) == len(other) == num // 2
        assert len({*one, *other}) == num // 2 * 2
        assert set(one) | set(other) <= set(range(num))
    assert halves(20, 0) == halves(20, 0)
    assert halves(20, 0) != halves(20, 1)


def test_dtypes_are_located_one_model_at_a_time(recipe, four, tmp_path, loads):
    run = run_of(recipe, four, tmp_path / "out", dtype="float32")
    locations = locations_of(run)
    for dtype in dtypes_of(run, StabilityConfig(dtypes=["bfloat16", "float32"])):
        locations.in_dtype(dtype)
    assert loads["dtypes"] == ["bfloat16", "bfloat16", "float32", "float32"]
    assert loads["most"] == 1
    assert locations.in_dtype("float32") == locations.on_task(run.task)


SEEKING = {"name": "seeking", "rank": 2, "batch_size": 2, "micro_batch": 2, "epochs": 1, "embeddings": True}


def test_blocks_are_those_that_seeking_takes(make, recipe, four, tmp_path):
    make(tmp_path / "out", SEEKING, [FEW[0], "analysis.tasks=[]", FEW[2]])
    found = tables(tmp_path / "out")
    run = run_of(recipe, four, tmp_path / "other", SEEKING)
    own, here = locate_blocks(run.source, run.target, run.task, run.options, run.style), locations_of(run)
    located = here.on_task(run.task)
    assert {(at, part): corner for (_, part, at), corner in located.chosen.items()} == own.blocks.corners
    assert located.layers == {"block": top_scores(own.blocks.layers, run.target.dims.layers, run.source.name)}
    assert {r["kind"] for r in found["jaccard"]} == {"q", "k", "v", "o", "gate", "up", "down", "embed", "unembed"}
    assert {r["model"] for r in found["jaccard"]} == {"source"}
    assert all(0 < r["chance"] < 1 for r in found["jaccard"])
    chosen = [r["source_layer"] for r in found["layers"] if r["chosen"]]
    assert chosen == located.layers["block"]
    assert {r["lines_jaccard"] for r in found["deltas"]} == {None}
    assert found["deltas"][0]["part"] == ALL
    drawn = figures({"tables": found})
    assert [figure.name for figure in drawn] == ["agreement", "by-layer", "layers", "scores", "deltas", "ranges"]


def test_a_method_that_locates_nothing_has_its_seeds_compared(make, tmp_path):
    make(tmp_path / "out", {**SEEKING, "name": "lora"}, ["analysis.seeds=2"])
    found = json.loads((tmp_path / "out" / "stability.json").read_text())
    assert set(found["tables"]) == {"scores", "seeds", "deltas", "ranges"}
    assert found["notes"] == ["lora locates nothing: only seeds are compared."]
    assert found["sentence"].startswith("lora: over 2 seeds the score on all ")


def test_neurons_drawn_at_random_are_compared_by_seed(make, tmp_path):
    method = {"name": "direct", "transfer_rate": 0.5, "locator": "random"}
    make(tmp_path / "out", method, ["analysis.seeds=4"], evaluate={"arms": []})
    found = json.loads((tmp_path / "out" / "stability.json").read_text())
    assert {r["between"] for r in found["tables"]["jaccard"]} == {"draws"}
    assert "scores" not in found["tables"]
    for row in found["tables"]["jaccard"]:
        if row["layer"] == ALL:
            assert abs(row["mean"] - row["chance"]) < 4 * row["chance_sd"]
    assert "random draws are compared" in found["notes"][0]
    assert found["tables"]["layers"]


def test_deltas_that_no_seed_changes_are_said_to_be_the_same(make, tmp_path):
    make(
        tmp_path / "out", {"name": "direct", "transfer_rate": 0.2}, [FEW[0], "analysis.tasks=[]", "analysis.dtypes=[]"]
    )
    found = json.loads((tmp_path / "out" / "stability.json").read_text())
    assert found["sentence"].endswith("the deltas of all seeds are the same.")
    assert {r["between"] for r in found["tables"]["jaccard"]} == {"examples", "seeds"}


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["analysis.seeds=1"], ConfigError, "analysis.seeds: found 1; expected greater than or equal to 2"),
        (["analysis.tasks=[gsm8k]"], ConfigError, "analysis.tasks: gsm8k: name other tasks than gsm8k, each once"),
        (["analysis.tasks=[nano/chess]"], ConfigError, "unknown task 'nano/chess'"),
        (["analysis.tasks=[mbpp]"], DataError, "mbpp"),
        (["analysis.tasks=[{name: mbpp, data: /nowhere}]"], DataError, "task.data: no folder /nowhere"),
        (["analysis.dtypes=[float32]"], ConfigError, "expected two different ones at least"),
        (["analysis.dtypes=[float32,float8]"], ConfigError, "analysis.dtypes.1: found 'float8'"),
        (
            ["analysis.dtypes=[float32,float16]"],
            ConfigError,
            "analysis.dtypes: cpu cannot compute in float16 here; leave it out",
        ),
        (["analysis.seed=3"], ConfigError, "unknown key 'analysis.seed'; did you mean 'seeds'?"),
    ],
)
def test_bad_options_are_refused_by_name_and_nothing_is_written(make, tmp_path, monkeypatch, overrides, error, message):
    monkeypatch.setattr("pkt.analyses.stability.can_use", lambda dtype, device: dtype != "float16")
    with pytest.raises(error) as found:
        make(tmp_path / "out", overrides=overrides)
    assert message in str(found.value)
    assert "\n" not in str(found.value)
    assert not (tmp_path / "out").exists()


def test_a_dtype_that_the_device_lacks_is_left_out_with_a_note(make, tmp_path, monkeypatch):
    monkeypatch.setattr("pkt.analyses.stability.can_use", lambda dtype, device: dtype != "float16")
    make(tmp_path / "out", {"name": "direct", "transfer_rate": 0.2}, [FEW[0], "analysis.tasks=[]"])
    found = json.loads((tmp_path / "out" / "stability.json").read_text())
    assert {r["one"] for r in found["tables"]["pairs"] if r["between"] == "dtypes"} == {"float32"}
    assert found["notes"] == ["Left out, for cpu cannot compute in it: float16."]


def test_options_of_what_a_method_does_not_do_are_refused(make, tmp_path):
    with pytest.raises(ConfigError, match="analysis.tasks: lora locates nothing; leave it out"):
        make(tmp_path / "out", {**SEEKING, "name": "lora"}, FEW)
