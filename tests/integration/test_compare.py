"""`pkt compare` on folders that `pkt run` and `pkt certify` made, whole and broken."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from certified_folders import ONE_PROCESS, edit, lines, read, small_recipe

from pkt.comparison import compare
from pkt.comparison_entry import entry
from pkt.errors import DataError
from pkt.run import Run


@pytest.fixture
def started(tmp_path) -> Path:
    """A folder with a recipe and nothing else."""
    folder = tmp_path / "started"
    Run(small_recipe(), folder, ONE_PROCESS).start()
    return folder


def test_a_run_shows_the_scores_and_costs_of_its_summary(finished):
    found, summary = entry(finished), read(finished / "summary.json")
    by_arm = {(s["arm"], s["tier"]): s for s in summary["scores"]}
    assert (found.run, found.method, found.state, found.verdict, found.tier) == ("tiny", "laten", "run", None, "all")
    assert found.scores["all"].score == by_arm["result", "all"]["score"]
    assert found.scores["all"].standard_error == by_arm["result", "all"]["standard_error"]
    assert found.source_scores["all"].score == by_arm["source", "all"]["score"]
    costs = {c["stage"]: c for c in summary["costs"]}
    assert found.costs.seconds == pytest.approx(costs["locate"]["seconds"] + costs["align"]["seconds"])
    assert found.costs.flop == summary["flop"]
    assert (found.costs.labels, found.costs.steps) == (5, 2)
    assert found.costs.trained_parameters == summary["trained_parameters"]


def test_a_certificate_shows_its_real_source_over_all_seeds(certified):
    found, certificate = entry(certified), read(certified / "certificate.json")
    arm = next(a for a in certificate["arms"] if a["arm"] == "real_source")
    assert (found.state, found.tier, found.verdict) == ("certified", "new", certificate["verdict"])
    new = found.scores["new"]
    assert new.score == pytest.approx(arm["score"])
    assert (new.num_seeds, new.num_items) == (2, certificate["items"]["num_items"])
    assert found.target_scores["new"].score == pytest.approx(certificate["scores"]["target"])
    assert found.source_scores["new"].score == pytest.approx(certificate["scores"]["source"])
    assert found.gain == certificate["gain"]
    assert found.asked
    located = read(certified / "stages.json")["locate"]
    assert found.costs.flop == arm["flop"] + located["flop"]
    assert found.costs.seconds == pytest.approx(arm["delta_seconds"] + located["seconds"], abs=2e-3)
    assert found.costs.labels == 100


def test_the_standard_error_has_seeds_and_units(certified):
    """Against the formula, on scores that vary in both."""
    paths = [certified / "arms" / "real_source" / f"seed-{seed}.jsonl" for seed in (0, 1)]
    draw = np.random.default_rng(0)
    for path in paths:
        edit(path, lambda content: [line.update(score=float(draw.integers(2))) for line in content if "output" in line])
    kept = [[line for line in lines(path) if line["tier"] == "new"] for path in paths]
    scores = np.array([[line["score"] for line in one] for one in kept])
    units = [line["unit"] for line in kept[0]]
    residuals = dict.fromkeys(units, 0.0)
    for unit, value in zip(units, scores.mean(0) - scores.mean(), strict=True):
        residuals[unit] += value
    groups = len(residuals)
    by_unit = groups / (groups - 1) * sum(r * r for r in residuals.values()) / len(units) ** 2
    by_seed = scores.mean(1).var(ddof=1) / 2
    found = entry(certified).scores["new"]
    assert found.standard_error == pytest.approx(math.sqrt(by_unit + by_seed))
    assert found.score == pytest.approx(scores.mean())


def test_both_kinds_in_the_order_given_as_tables_and_files(pkt, finished, certified, tmp_path):
    out = tmp_path / "out"
    found = pkt("compare", certified, finished, "--out", out)
    assert (found.code, found.err) == (0, "")
    assert found.out.index("nano/gsm8k, from") < found.out.index("gsm8k, from /")
    assert str(out / "comparison.html") in found.out
    content = read(out / "comparison.json")
    assert [run["run"] for run in content["runs"]] == ["small", "tiny"]
    with (out / "comparison.csv").open() as file:
        assert [line["state"] for line in csv.DictReader(file)] == ["certified", "run"]
    assert "<h1>Comparison</h1>" in (out / "comparison.html").read_text()
    assert {p.name for p in out.iterdir()} == {"comparison.json", "comparison.csv", "comparison.html"}


def test_json_is_all_that_stdout_holds(pkt, finished, tmp_path):
    plain = json.loads(pkt("compare", finished, "--json").out)
    assert plain["runs"][0]["run"] == "tiny"
    out = tmp_path / "out"
    assert json.loads(pkt("compare", finished, "--json", "--out", out).out) == read(out / "comparison.json") == plain
    drawn = json.loads(pkt("compare", finished, "--json", "--out", out, "--frontier").out)
    assert drawn == read(out / "comparison.json") == plain | {"frontiers": drawn["frontiers"]}


def test_the_frontier_is_drawn_into_files(pkt, finished, certified, tmp_path):
    out = tmp_path / "out"
    found = pkt("compare", certified, finished, "--out", out, "--frontier", "--tier", "all")
    assert found.code == 0, found.err
    assert len(list(out.glob("frontier-*.svg"))) == 4
    stated = read(out / "comparison.json")["frontiers"]
    assert [f["undominated"] for f in stated] == [["small"], ["small"], ["tiny"], ["tiny"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--frontier",), "--frontier needs --out DIR"),
        (("--tier", "new"), "--tier needs --frontier"),
        (("--out", "{tmp}/o", "--frontier", "--tier", "nwe"), "--tier 'nwe': no run has such a tier; there are all"),
    ],
)
def test_options_that_do_not_fit(pkt, finished, tmp_path, arguments, message):
    found = pkt("compare", finished, *(a.format(tmp=tmp_path) for a in arguments))
    assert (found.code, found.out) == (2, "")
    assert message in found.err
    assert len(found.err.splitlines()) == 1
    assert not (tmp_path / "o").exists()


def test_runs_of_one_name_are_told_apart_by_their_folders(finished, tmp_path):
    other = Path(shutil.copytree(finished, tmp_path / "more" / "again"))
    assert [e.run for e in compare([finished, other])] == ["tiny (finished)", "tiny (more/again)"]
    with pytest.raises(DataError, match="is given twice; give it once"):
        compare([finished, finished.parent / "more" / ".." / finished.name])


def test_a_line_of_the_frontier_is_one_method_told_the_same_in_words(finished, tmp_path):
    def series(**options: object) -> list[str]:
        other = Path(shutil.copytree(finished, tmp_path / "other", dirs_exist_ok=True))
        path = other / "recipe.yaml"
        recipe = yaml.safe_load((finished / "recipe.yaml").read_text())
        path.write_text(yaml.safe_dump(recipe | {"method": {**recipe["method"], **options}}))
        return [e.series for e in compare([finished, other])]

    assert series(steps=7, lr=0.5) == ["tiny", "tiny"]
    assert series(neurons="random") == ["neurons=scored (tiny)", "neurons=random (tiny)"]
    assert series(name="lora") == ["laten (tiny)", "lora (tiny)"]


def test_runs_on_other_items_do_not_compare(pkt, finished, tmp_path):
    other = Path(shutil.copytree(finished, tmp_path / "other"))
    assert "not scored on the same items" not in pkt("compare", finished, other).out
    path = other / "scores.jsonl"
    path.write_text(path.read_text().replace("test.jsonl:1", "test.jsonl:17"))
    assert "These runs were not scored on the same items, and do not compare." in pkt("compare", finished, other).out
    path.write_text("{}")
    assert pkt("compare", finished, other).code == 0


def test_an_unfinished_run_is_shown_as_such(pkt, finished):
    for name in ("summary.json", "scores.jsonl"):
        (finished / name).unlink()
    found = pkt("compare", finished)
    assert found.code == 0
    assert "unfinished: nothing is scored yet" in found.out
    assert entry(finished).costs.flop > 0
    assert entry(finished).tier == "all"
    path = finished / "recipe.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"task": {"name": "nano/gsm8k"}}))
    assert entry(finished).tier == "new"  # as of its finished neighbours on that task


def test_an_unfinished_certificate_shows_the_seeds_that_are_there(certified):
    (certified / "certificate.json").unlink()
    (certified / "summary.json").unlink()
    found = entry(certified)
    assert (found.state, found.verdict, found.scores["new"].num_seeds) == ("unfinished: 2 of 2 seeds", None, 2)
    shutil.rmtree(certified / "arms" / "real_source")
    found = entry(certified)
    assert (found.state, found.scores) == ("unfinished: 0 of 2 seeds", {})


def break_json(folder, name):
    (folder / name).write_text("{")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: break_json(f, "certificate.json"), "certificate.json: not valid JSON"),
        (lambda f: break_json(f, "stages.json"), "stages.json: damaged"),
        (lambda f: (f / "stages.json").write_text("[]"), "stages.json: damaged"),
        (lambda f: (f / "stages.json").write_text('{"align": 3}'), "stages.json: damaged"),
        (lambda f: break_json(f, "recipe.yaml"), "recipe.yaml: not valid YAML"),
        (lambda f: break_json(f, "arms/real_source/seed-1.json"), "seed-1.json: not valid JSON"),
        (lambda f: break_json(f, "arms/real_source/seed-1.jsonl"), "seed-1.jsonl: damaged; delete it, and run `pkt certify` again"),
        (lambda f: (f / "arms/real_source/seed-1.jsonl").unlink(), "seed-1.jsonl: no such file; run `pkt certify` again"),
        (lambda f: edit(f / "arms/real_source/seed-1.jsonl", lambda c: c.pop(0)), "seed-1.jsonl: holds other items than"),
        (lambda f: edit(f / "certificate.json", lambda c: c.update(method="sft")), "of another recipe than recipe.yaml .method sft, not laten."),
    ],
)  # fmt: skip
def test_damage_is_one_line(certified, damage, message):
    damage(certified)
    with pytest.raises(Exception, match=message) as e:
        entry(certified)
    assert "\n" not in str(e.value)
    assert type(e.value).__module__ == "pkt.errors"


def test_folders_that_are_none(pkt, started, tmp_path, finished):
    (tmp_path / "empty").mkdir()
    for folder, message in (
        (tmp_path / "nowhere", "no such folder"),
        (tmp_path / "empty", "no run folder, for it has no recipe.yaml"),
        (finished / "recipe.yaml", "no such folder"),
        (started, "holds a recipe and no results; finish it with `pkt run` or `pkt certify`"),
    ):
        found = pkt("compare", finished, folder)
        assert (found.code, found.out) == (2, "")
        assert message in found.err
        assert len(found.err.splitlines()) == 1
