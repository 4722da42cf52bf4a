"""The commands end to end, on a tiny random pair and a task in a folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from run_folders import temporaries, weights
from transformers import AutoModelForCausalLM, AutoTokenizer

from pkt.errors import ConfigError
from pkt.inject.delta import Delta
from pkt.methods import METHODS
from pkt.models.checkpoint import Checkpoint
from pkt.models.lm import LM
from pkt.tasks.sources import TASKS

COMMANDS = ["demo", "run", "plan", "locate", "align", "inject", "evaluate", "report", "methods", "tasks"]


def test_help_is_quick_and_lists_every_command():
    code = (
        "import sys; from pkt.cli import main; sys.argv = ['pkt', '--help']\n"
        "try: main()\n"
        "finally: print('heavy:', sorted({'torch', 'transformers', 'lm_eval', 'datasets', 'scipy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "heavy: []" in done.stdout
    assert all(f" {command} " in done.stdout for command in COMMANDS)
    assert not done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(pkt, command):
    done = pkt(command, "--help")
    assert (done.code, done.err) == (0, "")
    assert f"pkt {command}" in done.out


def test_options_have_the_types_that_a_user_writes(pkt):
    shown = pkt("analyses", "representation").out
    assert "{name, revision} | None" in shown
    assert "pkt." not in shown
    assert "typing" not in shown


def test_the_package_sets_how_threads_wait_unless_somebody_has():
    code = "import pkt, os, sys; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    for own, expected in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        env = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | own
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
        assert done.stdout.split() == [expected, "False"]


def test_no_command_shows_help(pkt):
    assert pkt().out == pkt("--help").out
    assert pkt().code == 0


def test_methods_lists_them_and_every_option(pkt):
    assert all(name in pkt("methods").out for name in METHODS.names())
    rows = {line.split()[0]: line for line in pkt("methods", "laten").out.splitlines() if line[:1].isalpha()}
    config = METHODS.get("laten").config
    for name, field in config.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            assert {f"{name}.{option}" for option in field.annotation.model_fields} <= rows.keys()
            continue
        assert repr(field.default) in rows[name]
        assert (field.description or "").split()[0] in rows[name]
    assert "> 0 <= 1" in rows["transfer_rate"]
    assert ">= 1" in rows["steps"]
    assert "published | fan_in" in rows["init"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "laten",
            ["layers", "neurons", "Tokenizers and families may differ", "alignment: activations", "query_neurons"],
        ),
        ("direct", ["layers", "neurons", "Tokenizers and families may differ", "query_neurons"]),
        ("seeking", ["layers", "at least as large", "matrices of their own", "rank", "equal token maps", "coupled"]),
        ("random_init", ["What Seeking needs"]),
        ("gkd", ["Equal token maps", "trl", "loss_on_prompt"]),
        ("seqkd", ["Any pair", "tokenizers and families may differ"]),
        ("lora", ["Any target", "rank", "all of them or none"]),
        ("pissa", ["Any target", "rank", "all of them or none"]),
        ("sft", ["Any target"]),
    ],
)
def test_a_method_says_what_it_needs_of_a_pair(pkt, name, words):
    """What its refusals name: tests of the methods hold each of them."""
    line = " ".join(pkt("methods", name).out.split())
    needs = line[line.index("needs: ") : line.index(" option ")]
    assert all(word in needs for word in words)


def test_every_method_says_what_it_needs():
    assert all(METHODS.get(name).needs for name in METHODS.names())


def test_tasks_lists_them_and_the_recipes(pkt):
    assert all(name in pkt("tasks").out for name in TASKS)
    assert "nano_tuned" in pkt("tasks", "--recipes").out


def test_tasks_shows_the_splits_with_an_example(pkt, data):
    out = pkt("tasks", "nano/mmlu").out
    assert [line.split()[0] for line in out.splitlines()[1:6]] == ["extract", "align", "train", "valid", "test"]
    assert "new" in out
    assert "example nano/mmlu/" in out
    out = pkt("tasks", "gsm8k", "--data", data).out
    assert "How much are 1 blicks?\n-> Answer: They are. So the answer is 7." in out


def test_plan_reads_no_weights(pkt, recipe, monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise AssertionError("weights were read")

    path = recipe()
    for owner, name in ((LM, "_load"), (LM, "slices"), (Checkpoint, "lines"), (torch.nn.Module, "__init__")):
        monkeypatch.setattr(owner, name, refuse)
    monkeypatch.setattr(Checkpoint, "digest", property(refuse))
    done = pkt("plan", path)
    assert done.code == 0, done.err
    assert "5 rows of 56" in done.out
    assert "48 -> 32" in done.out
    assert "align, 2 steps" in done.out
    assert "16 rows of 16" in pkt("plan", path, "--set", "method.transfer_rate=1.0").out  # two heads share a row
    dry = pkt("run", path, "--dry-run", "--out", tmp_path / "out")
    assert dry.code == 0
    assert "5 rows of 56" in dry.out
    assert not list(tmp_path.iterdir())


def test_run_leaves_a_whole_folder(pkt, recipe, finished, make_lm, tmp_path):
    target, folder = make_lm("llama", "target"), tmp_path / "out"
    done = pkt("run", recipe(), "--out", folder)
    assert done.code == 0, done.err
    assert weights(folder) == weights(finished)
    assert str(folder / "model") in done.out
    firsts = [line.split()[0] for line in done.out.splitlines() if line[:1].isalpha()]
    assert firsts[:2] == ["tier", "all"]
    assert firsts[-2:] == ["model:", "report:"]
    assert {path.name for path in folder.iterdir()} == {
        "recipe.yaml", "env.json", "stages.json", "neurons", "delta.safetensors", "export.json", "model", "scores.jsonl",
        "perplexity.json", "summary.json", "report.html", "contamination.json",
    }  # fmt: skip
    assert not temporaries(folder)
    resolved = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert resolved["method"]["transfer_rate"] == 0.1
    assert resolved["method"]["attribution"]["scale"] == "exact"
    lines = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    assert [line["arm"] for line in lines] == ["target"] * 3 + ["source"] * 3 + ["result"] * 3
    assert {"arm", "seed", "task", "id", "unit", "tier", "prompt", "output", "answer", "score"} <= lines[0].keys()
    summary = json.loads((folder / "summary.json").read_text())
    assert [row["arm"] for row in summary["scores"]] == ["target", "source", "result"]
    assert [cost["stage"] for cost in summary["costs"]] == [
        "overlap", "locate", "align", "inject", "evaluate target", "evaluate source", "evaluate result",
    ]  # fmt: skip
    assert len(summary["history"]) == 2
    assert len(summary["delta"]) == 4 * target.dims.layers
    env = json.loads((folder / "env.json").read_text())
    assert env["weights"][target.name] == target.digest
    assert env["command"].startswith("pkt run")


def test_result_differs_from_the_target_in_located_lines_only(finished, make_lm):
    target = make_lm("llama", "target")
    delta = Delta.load(finished / "delta.safetensors")
    result = AutoModelForCausalLM.from_pretrained(finished / "model")
    base = AutoModelForCausalLM.from_pretrained(target.name).state_dict()
    touched = {f"{target.family.module(part, layer)}.weight": c for (layer, part), c in delta.changes.items()}
    assert len(touched) == 4 * target.dims.layers
    for name, weight in result.state_dict().items():
        different = weight != base[name]
        if name not in touched:
            assert not different.any(), name
            continue
        change = touched[name]
        lines = different.any(dim=1 - change.axis).nonzero().flatten().tolist()
        assert lines == sorted(change.index.tolist())
    ids = AutoTokenizer.from_pretrained(finished / "model")("How much?", return_tensors="pt")
    assert result(**ids).logits.isfinite().all()


def test_stage_by_stage_gives_the_same_bytes(pkt, recipe, finished, tmp_path):
    folder = tmp_path / "out"
    for command in (
        ("locate", recipe(), "--out", folder),
        ("align", folder),
        ("inject", folder),
        ("evaluate", folder),
        ("report", folder),
    ):
        done = pkt(*command, *([] if command[0] == "report" else ["--device", "cpu"]))
        assert done.code == 0, done.err
        assert done.out
    assert weights(folder) == weights(finished)
    assert (folder / "report.html").is_file()
    assert not temporaries(folder)


def test_another_seed_gives_another_delta(pkt, recipe, finished, tmp_path):
    folder = tmp_path / "out"
    assert pkt("run", recipe(seed=1), "--out", folder, "--set", "evaluate.arms=[result]").code == 0
    first, other = Delta.load(finished / "delta.safetensors"), Delta.load(folder / "delta.safetensors")
    assert all(torch.equal(change.index, other.changes[key].index) for key, change in first.changes.items())
    assert any(not torch.equal(change.values, other.changes[key].values) for key, change in first.changes.items())


def test_report_is_written_anew(pkt, finished):
    (finished / "report.html").unlink()
    done = pkt("report", finished)
    assert done.code == 0
    assert done.out.strip() == str(finished / "report.html")
    assert (finished / "report.html").read_text().startswith("<!")


@pytest.mark.parametrize(
    ("command", "needed"),
    [("align", "pkt locate"), ("inject", "pkt align"), ("evaluate", "pkt inject"), ("report", "pkt run")],
)
def test_a_stage_before_its_time_names_the_one_that_is_missing(pkt, finished, command, needed):
    names = ["recipe.yaml", "delta.safetensors", "model", "summary.json"]
    for name in names[["align", "inject", "evaluate", "report"].index(command) :]:
        path = finished / name
        path.rename(finished.with_name(name))
    before = sorted(finished.rglob("*"))
    done = pkt(command, finished)
    assert done.code == 2
    assert needed in done.err
    assert sorted(finished.rglob("*")) == before


def test_debug_shows_the_traceback(pkt):
    with pytest.raises(ConfigError, match="no recipe 'nothing'"):
        pkt("--debug", "plan", "nothing")
