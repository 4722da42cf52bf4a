"""A run that was stopped, changed or damaged: the same command again gives the same bytes and repeats nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from run_folders import temporaries, weights
from safetensors.torch import load_file

import pkt.report.html
import pkt.run
import pkt.summary
from pkt.comparison_entry import entry
from pkt.files import save_tensors, write_text
from pkt.inject.delta import Delta
from pkt.machine import Machine
from pkt.models.lm import LM
from pkt.run import Run
from pkt.summary import write_summary

STAGES = ["overlap", "locate", "align", "inject", "evaluate target", "evaluate source", "evaluate result"]


@pytest.fixture(autouse=True)
def plain_page(monkeypatch):
    """The page costs more time than the run, and is no part of these tests."""
    monkeypatch.setattr(pkt.report.html, "write", lambda folder: write_text(folder / "report.html", "page"))


def records(folder: Path) -> dict[str, dict]:
    path = folder / "stages.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def stop(*_, **__):
    raise KeyboardInterrupt


def refuse(*_, **__):
    raise AssertionError("a finished stage was run again")


def stop_before(monkeypatch, stage: str) -> None:
    """Ctrl-C at the moment when `stage` would do its work."""
    if stage.startswith("evaluate"):
        score = Run._score
        monkeypatch.setattr(Run, "_score", lambda run, arm, lm: stop() if stage.endswith(arm) else score(run, arm, lm))
        return
    owner, name = {
        "overlap": (pkt.run, "record_overlap"),
        "locate": (Run, "locate"),
        "align": (Run, "align"),
        "inject": (Run, "inject"),
        "summary": (pkt.summary, "write_summary"),
        "report": (pkt.report.html, "write"),
    }[stage]
    monkeypatch.setattr(owner, name, stop)


@pytest.mark.parametrize("stage", [*STAGES, "summary", "report"])
def test_stopped_between_two_stages(pkt, recipe, finished, tmp_path, monkeypatch, stage):
    command = ("run", recipe(), "--out", tmp_path / "out")
    with monkeypatch.context() as patch:
        stop_before(patch, stage)
        done = pkt(*command)
    assert done.code == 130
    assert done.err == "interrupted; run the same command again: finished stages are kept\n"
    first = records(tmp_path / "out")
    assert list(first) == sorted(STAGES[: STAGES.index(stage)] if stage in STAGES else STAGES)
    assert pkt(*command).code == 0
    assert weights(tmp_path / "out") == weights(finished)
    again = records(tmp_path / "out")
    assert list(again) == sorted(STAGES)
    assert {name: again[name] for name in first} == first
    assert not temporaries(tmp_path / "out")


def test_a_finished_run_loads_no_model_again(pkt, recipe, finished, monkeypatch):
    before = records(finished)
    monkeypatch.setattr(LM, "_load", refuse)
    assert pkt("run", recipe(), "--out", finished).code == 0
    for command in ("align", "inject", "evaluate"):
        assert pkt(command, finished).code == 0
    assert records(finished) == before


@pytest.mark.parametrize("stage", ["locate", "align", "inject"])
def test_stopped_inside_a_stage(pkt, recipe, finished, tmp_path, monkeypatch, stage):
    written = {"locate": "attribution", "align": "delta", "inject": "model"}[stage]
    save, count = save_tensors, []

    def stop_while_writing(path, tensors, header):
        count.append(path)
        if path.name.startswith(written) and (stage != "locate" or len(count) == 2):  # the target's, after the source's
            stop()
        save(path, tensors, header)

    folder = tmp_path / "out"
    with monkeypatch.context() as patch:
        for module in ("pkt.memo", "pkt.inject.delta", "pkt.inject.export"):
            patch.setattr(f"{module}.save_tensors", stop_while_writing)
        assert pkt("run", recipe(), "--out", folder).code == 130
    assert not temporaries(folder)
    assert len(list((folder / "neurons").glob("*.safetensors"))) == (1 if stage == "locate" else 2)
    assert not (folder / "model").exists()
    assert pkt("run", recipe(), "--out", folder).code == 0
    assert weights(folder) == weights(finished)


KILLED = """
import os, signal, sys
import pkt.files
from pkt.cli import main

replace = os.replace
pkt.files.os.replace = lambda a, b: os.kill(os.getpid(), signal.SIGKILL) if b.name == {name!r} else replace(a, b)
main()
"""


def test_killed_while_a_file_was_written(pkt, recipe, finished, tmp_path):
    folder, name = tmp_path / "out", "delta.safetensors"
    command = [sys.executable, "-c", KILLED.format(name=name), "run", str(recipe()), "--out", str(folder)]
    assert subprocess.run(command, capture_output=True, check=False, env=os.environ).returncode == -9
    assert [path.name.rpartition(".")[0] for path in temporaries(folder)] == [f".{name}"]
    assert pkt("run", recipe(), "--out", folder).code == 0
    assert weights(folder) == weights(finished)
    assert not temporaries(folder)


def test_killed_while_the_first_file_was_written(pkt, recipe, tmp_path):
    (tmp_path / ".recipe.yaml.999999999").write_text("name: ti")
    args = ("--set", "evaluate.arms=[target]", "--set", "method.steps=1")
    assert pkt("run", recipe(), "--out", tmp_path, *args).code == 0
    assert not temporaries(tmp_path)


def test_a_changed_option_redoes_what_depends_on_it(pkt, recipe, finished, tmp_path):
    before, neurons = records(finished), {p: p.stat().st_mtime_ns for p in (finished / "neurons").iterdir()}
    changed = ("--set", "method.steps=3")
    assert pkt("run", recipe(), "--out", finished, *changed).code == 0
    after = records(finished)
    assert {name for name in after if after[name] != before[name]} == {"align", "inject", "evaluate result"}
    assert {p: p.stat().st_mtime_ns for p in (finished / "neurons").iterdir()} == neurons
    assert len(Delta.load(finished / "delta.safetensors").provenance["history"]) == 3
    assert "steps: 3" in (finished / "recipe.yaml").read_text()
    assert pkt("run", recipe(), "--out", tmp_path / "fresh", *changed).code == 0
    assert weights(finished) == weights(tmp_path / "fresh")


def test_what_another_recipe_left_stands_for_nothing(pkt, recipe, finished):
    """Each command that a run is continued with, after the recipe's options changed."""
    left = (finished / "delta.safetensors").read_bytes()
    assert pkt("locate", recipe(), "--out", finished, "--set", "method.steps=3").code == 0
    assert not (finished / "summary.json").exists()
    assert entry(finished).state == "unfinished: nothing is scored yet"
    assert entry(finished).costs.flop is None
    pkt("inject", finished).refuses("delta.safetensors is of another recipe than recipe.yaml; run `pkt align")
    pkt("evaluate", finished).refuses("model is of another recipe than recipe.yaml, or of another delta")
    assert (finished / "delta.safetensors").read_bytes() == left
    write_summary(Run.resume(finished, Machine("cpu")))
    summary = json.loads((finished / "summary.json").read_text())
    assert (summary["delta"], summary["steps"]) == ([], None)
    assert {row["arm"] for row in summary["scores"]} == {"target", "source"}
    assert {cost["stage"] for cost in summary["costs"]} == {"overlap", "locate", "evaluate target", "evaluate source"}
    assert "steps: 2" in (finished / "model" / "README.md").read_text()
    for command in ("align", "inject", "evaluate"):
        assert pkt(command, finished).code == 0
    assert json.loads((finished / "summary.json").read_text())["steps"] == 3
    assert "steps: 3" in (finished / "model" / "README.md").read_text()


@pytest.mark.parametrize(
    ("key", "redone"),
    [
        ("method.attribution.positions=last", {"locate", "align", "inject", "evaluate result"}),
        ("method.locator=sensitivity", {"locate", "align", "inject", "evaluate result"}),
        ("export.dtype=float32", {"inject", "evaluate result"}),
        ("evaluate.limit=2", {"evaluate target", "evaluate source", "evaluate result"}),
        ("dtype=bfloat16", set(STAGES) - {"overlap"}),
    ],
)
def test_every_option_redoes_the_stages_that_depend_on_it(pkt, recipe, finished, key, redone):
    before = records(finished)
    assert pkt("run", recipe(), "--out", finished, "--set", key).code == 0
    after = records(finished)
    assert {name for name in after if after[name] != before[name]} == redone


def test_a_recipe_changed_by_hand_redoes_what_depends_on_it(pkt, finished):
    path = finished / "recipe.yaml"
    path.write_text(path.read_text().replace("steps: 2", "steps: 3"))
    pkt("inject", finished).refuses("delta.safetensors is of another recipe than recipe.yaml")
    assert pkt("align", finished).code == 0
    assert not (finished / "summary.json").exists()
    assert set(records(finished)) == {"overlap", "locate", "align", "evaluate target", "evaluate source"}


def test_a_delta_is_exported_without_its_source(pkt, recipe, make_lm, tmp_path):
    source = shutil.copytree(make_lm("llama", "source").name, tmp_path / "source")
    args = ("--out", tmp_path / "out", "--set", "evaluate.arms=[]")
    assert pkt("run", recipe(source=str(source)), *args).code == 0
    shutil.rmtree(source)
    shutil.rmtree(tmp_path / "out" / "model")
    assert pkt("inject", tmp_path / "out").code == 0


def test_a_run_whose_model_was_deleted_keeps_its_summary(pkt, recipe, finished):
    before = json.loads((finished / "summary.json").read_text())
    shutil.rmtree(finished / "model")
    run = Run.resume(finished, Machine("cpu"))
    run.start()
    assert json.loads((finished / "summary.json").read_text()) == before
    write_summary(run)
    assert json.loads((finished / "summary.json").read_text())["scores"] == before["scores"]


def test_perplexities_of_arms_that_are_no_longer_asked_for_are_not_shown(pkt, recipe, tmp_path):
    (tmp_path / "text.txt").write_text("Tom buys a lot of things in many shops and never counts. " * 20)
    args = ("--out", tmp_path / "out", "--set", f"evaluate.perplexity_text={tmp_path / 'text.txt'}")
    for arms, shown in (("[target,result]", {"target", "result", "text"}), ("[target]", {"target", "text"})):
        assert pkt("run", recipe(), *args, "--set", f"evaluate.arms={arms}").code == 0
        assert set(json.loads((tmp_path / "out" / "summary.json").read_text())["perplexity"]) == shown


def test_a_damaged_record_of_the_export_is_made_anew(pkt, recipe, tmp_path):
    args = ("--out", tmp_path / "out", "--set", "dtype=bfloat16", "--set", "evaluate.arms=[result]")
    assert pkt("run", recipe(), *args).code == 0
    path = tmp_path / "out" / "export.json"
    before = path.read_text()
    path.write_text(before[:20])
    assert pkt("run", recipe(), *args).code == 0
    assert path.read_text() == before


def test_folders_of_models_are_kept_whole(pkt, recipe, make_lm, tmp_path, monkeypatch):
    """A run goes on, and is verified, from another working folder."""
    for role in ("source", "target"):
        shutil.copytree(make_lm("llama", role).name, tmp_path / "here" / role)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert pkt("locate", recipe(source="source", target="target"), "--out", tmp_path / "out").code == 0
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert pkt("align", tmp_path / "out").code == 0
    assert Run.resume(tmp_path / "out").recipe.source.name == str(tmp_path / "here" / "source")


def test_other_data_redoes_what_reads_it(pkt, recipe, finished, data):
    before = records(finished)
    path = data / "test" / "gsm8k" / "test.jsonl"
    path.write_text(path.read_text().replace("blicks", "snarks"))
    task = {"name": "gsm8k", "data": str(data), "prompt_style": "plain"}
    assert pkt("run", recipe(task=task), "--out", finished).code == 0
    after = records(finished)
    assert {name for name in after if after[name] != before[name]} == {
        "overlap",
        "evaluate target",
        "evaluate source",
        "evaluate result",
    }
    assert "snarks" in (finished / "scores.jsonl").read_text()
    assert "blicks" not in (finished / "scores.jsonl").read_text()


def test_an_arm_that_is_no_longer_asked_for_leaves(pkt, recipe, finished):
    assert pkt("run", recipe(), "--out", finished, "--set", "evaluate.arms=[target, result]").code == 0
    summary = json.loads((finished / "summary.json").read_text())
    assert [row["arm"] for row in summary["scores"]] == ["target", "result"]
    assert '"arm": "source"' not in (finished / "scores.jsonl").read_text()
    assert "source" not in (summary["perplexity"] or {})


DAMAGED = {
    "truncated": [
        "delta.safetensors",
        "neurons/*.safetensors",
        "model/model.safetensors",
        "model/tokenizer.json",
        "scores.jsonl",
    ],
    "changed": [
        "delta.safetensors",
        "model/model.safetensors",
        "model/config.json",
        "scores.jsonl",
        "contamination.json",
    ],
    "deleted": [
        "delta.safetensors",
        "neurons/*.safetensors",
        "model/tokenizer.json",
        "export.json",
        "scores.jsonl",
        "report.html",
        "contamination.json",
    ],
}


@pytest.mark.parametrize(("damage", "name"), [(damage, name) for damage, names in DAMAGED.items() for name in names])
def test_a_damaged_file_is_made_anew(pkt, recipe, finished, tmp_path, damage, name):
    whole = Path(shutil.copytree(finished, tmp_path / "whole"))
    paths = sorted(finished.glob(name))
    assert paths
    for path in paths:
        content = path.read_bytes()
        if damage == "deleted":
            path.unlink()
        elif damage == "truncated":
            path.write_bytes(content[: len(content) * 2 // 3])
        else:
            path.write_bytes(content[:-9] + b"  " + content[-7:])
    done = pkt("run", recipe(), "--out", finished)
    assert done.code == 0, done.err
    assert weights(finished) == weights(whole)
    for path in paths:
        if path.suffix == ".safetensors":
            assert load_file(path).keys() == load_file(whole / path.relative_to(finished)).keys()
        elif path.suffix == ".json" and path.name != "summary.json":
            assert path.read_bytes() == (whole / path.relative_to(finished)).read_bytes()
        else:
            assert path.stat().st_size > 0
    assert not temporaries(finished)


def test_damaged_scores_of_neurons_are_not_used_by_align(pkt, finished):
    delta = (finished / "delta.safetensors").read_bytes()
    (finished / "delta.safetensors").unlink()
    for path in (finished / "neurons").iterdir():
        path.write_bytes(path.read_bytes()[:-20])
    assert pkt("align", finished).code == 0
    assert (finished / "delta.safetensors").read_bytes() == delta


def test_damaged_record_of_stages_says_what_to_do(pkt, recipe, finished):
    (finished / "stages.json").write_text('{"locate": ')
    done = pkt("run", recipe(), "--out", finished)
    assert done.code == 2
    assert "stages.json: damaged; delete it" in done.err
    (finished / "stages.json").unlink()
    expected = weights(finished)
    assert pkt("run", recipe(), "--out", finished).code == 0
    assert weights(finished) == expected
