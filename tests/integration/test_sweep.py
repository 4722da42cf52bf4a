"""`pkt sweep` on the tiny pair: folders, table, resuming, failures, certificates."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pkt.report.html
from pkt.certify.statistics import spread
from pkt.comparison import compare
from pkt.errors import TrainingError
from pkt.files import write_text
from pkt.run import Run
from pkt.sweeping.engine import planned, sweep
from pkt.sweeping.grid import load_sweep
from pkt.sweeping.table import table as make_table

OVER = ("--over", "method.steps=1,2", "--over", "method.transfer_rate=0.1", "--seeds", "2")
RUNS = [f"steps={steps},transfer_rate=0.1/seed-{seed}" for steps in (1, 2) for seed in (0, 1)]
TASK = {"name": "nano/mmlu", "prompt_style": "plain"}
EVALUATE = {"limit": 2, "perplexity_text": str(Path(__file__).parents[2] / "LICENSE")}
TABLE = ("sweep.json", "sweep.csv")


@pytest.fixture(autouse=True)
def plain_page(monkeypatch):
    """The pages of the runs cost more time than the runs."""
    monkeypatch.setattr(pkt.report.html, "write", lambda folder: write_text(folder / "report.html", "page"))


@pytest.fixture(scope="session")
def small(recipe) -> Path:
    """The tiny pair on an embedded task, whose items are ranked and not generated."""
    return recipe(task=TASK, evaluate=EVALUATE, dtype="float32")


@pytest.fixture(scope="session")
def _swept(tmp_path_factory, small) -> Path:
    folder = tmp_path_factory.mktemp("swept") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pkt.report.html, "write", lambda folder: write_text(folder / "report.html", "page"))
        sweep(str(small), folder, over={"method.steps": [1, 2], "method.transfer_rate": [0.1]}, seeds=2)
    return folder


@pytest.fixture
def swept(_swept, tmp_path) -> Path:
    """A copy of a finished sweep over two axes."""
    return Path(shutil.copytree(_swept, tmp_path / "swept"))


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "sweep.json").read_text(encoding="utf-8"))


def table(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in TABLE]


def lines(folder: Path, arm: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "scores.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in found if line["arm"] == arm]


def times(folder: Path) -> dict[str, int]:
    """When the deltas of a sweep were written."""
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("delta.safetensors")}


# what it leaves


def test_every_setting_and_seed_is_a_run_folder(swept):
    assert sorted(str(p.parent.relative_to(swept)) for p in swept.rglob("recipe.yaml")) == sorted(RUNS)
    entries = compare([swept / run for run in RUNS])
    assert all(
        entry.state == "run" and entry.scores and entry.target_scores and entry.source_scores for entry in entries
    )
    deltas = {(swept / run / "delta.safetensors").read_bytes() for run in RUNS}
    assert len(deltas) == len(RUNS)


def test_target_and_source_are_scored_once_and_neurons_located_once(swept):
    kept = [
        path.name.partition("-")[0] for path in (swept / "shared" / "neurons").iterdir() if ".cost." not in path.name
    ]
    assert sorted(kept) == ["attribution", "attribution", "scores", "scores"]
    assert not list(swept.glob("*/*/neurons"))
    for arm in ("target", "source"):
        shown = [[(line["id"], line["output"], line["score"]) for line in lines(swept / run, arm)] for run in RUNS]
        assert shown[0]
        assert all(one == shown[0] for one in shown)


def test_every_seed_is_compared_with_the_target_as_its_own_folder_scored_it(swept, small):
    """Where rounding differs from seed to seed, targets were scored in other dtypes."""
    path = swept / RUNS[1] / "scores.jsonl"
    changed = [json.loads(line) for line in path.read_text().splitlines()]
    target = [line for line in changed if line["arm"] == "target"]
    lost = sum(1 - line["score"] for line in target if line["tier"] == "new") / sum(
        line["tier"] == "new" for line in target
    )
    for line in target:
        line["score"] = 1.0
    path.write_text("".join(f"{json.dumps(line)}\n" for line in changed))
    grid = load_sweep([str(small)], {"method.steps": [1, 2], "method.transfer_rate": [0.1]}, seeds=2)
    found = make_table(grid, planned(grid, swept, certify=False), {}, swept, certify=False)
    before = read(swept)["points"][0]["change"]["mean"]
    assert found["points"][0]["change"]["mean"] == pytest.approx(before - lost / 2)


def test_a_run_of_a_sweep_is_what_pkt_run_makes(pkt, small, swept, tmp_path):
    given = (
        "--set",
        "method.steps=2",
        "--set",
        "method.transfer_rate=0.1",
        "--set",
        "seed=1",
        "--set",
        "evaluate.seed=0",
    )
    assert pkt("run", small, "--out", tmp_path / "alone", *given).code == 0
    inside = swept / "steps=2,transfer_rate=0.1" / "seed-1"
    for name in ("delta.safetensors", "model/model.safetensors", "recipe.yaml"):
        assert (inside / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    for arm in ("target", "source", "result"):
        assert lines(inside, arm) == lines(tmp_path / "alone", arm)


def test_the_table_follows_from_the_folders(swept):
    found = read(swept)
    assert [row["point"] for row in found["points"]] == [run.partition("/")[0] for run in RUNS[::2]]
    row = found["points"][1]
    held = [lines(swept / row["folder"] / f"seed-{seed}", "result") for seed in (0, 1)]
    target = lines(swept / row["folder"] / "seed-0", "target")
    new = [i for i, line in enumerate(target) if line["tier"] == "new"]
    units = [target[i]["unit"] for i in new]
    made = spread([[one[i]["score"] for i in new] for one in held], [[target[i]["score"] for i in new]] * 2, units)
    assert row["tier"] == "new"
    assert row["change"]["mean"] == pytest.approx(made.mean)
    assert (row["change"]["low"], row["change"]["high"]) == pytest.approx(made.interval(0.95))
    scores = [sum(line["score"] for line in one) / len(one) for one in held]
    assert row["scores"]["all"]["score"] == pytest.approx(sum(scores) / 2)
    assert row["scores"]["all"]["num_seeds"] == 2
    losses = [
        json.loads((swept / row["folder"] / f"seed-{seed}" / "valid.json").read_text())["loss"] for seed in (0, 1)
    ]
    assert row["valid_loss"] == {"mean": sum(losses) / 2, "by_seed": losses}
    group = found["groups"][0]
    best = max(found["points"], key=lambda row: row["scores"]["new"]["score"])
    assert group["best"] == best["point"]
    chosen = min(found["points"], key=lambda row: row["valid_loss"]["mean"])
    assert group["chosen_by_valid_loss"] == chosen["point"]
    assert best["against_best"] is None
    assert all(row["against_best"]["mean"] <= 0 for row in found["points"] if row is not best)


def test_valid_loss_is_that_of_the_exported_model(swept):
    from pkt.models.lm import LM
    from pkt.tasks.losses import encode_all, mean_loss
    from pkt.tasks.sources import task

    folder = swept / RUNS[0]
    lm = LM(folder / "model", device="cpu", dtype="float32")
    examples = encode_all(task("nano/mmlu").split("valid"), "plain", lm, loss_on_prompt=False)
    with lm.loaded() as model:
        loss = mean_loss(model, lm, examples, 16)
    assert json.loads((folder / "valid.json").read_text())["loss"] == pytest.approx(loss, rel=1e-4)


def test_csv_has_a_row_per_setting(swept):
    with (swept / "sweep.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method.steps"], row["method.transfer_rate"]) for row in rows] == [("1", "0.1"), ("2", "0.1")]
    for row, known in zip(rows, read(swept)["points"], strict=True):
        assert float(row["new_score"]) == known["scores"]["new"]["score"]
        assert float(row["change_low"]) == known["change"]["low"]
        assert row["seeds"] == "2"
        assert row["error"] == ""


def test_costs_count_what_is_shared_in_every_setting(swept):
    costs = json.loads((swept / "costs.json").read_text())
    located = json.loads(next((swept / "shared").glob("locate-*/stages.json")).read_text())["locate"]
    assert located["flop"] > 0
    assert all(row["flop"] > located["flop"] for row in costs)
    assert costs[1]["flop"] > costs[0]["flop"]  # two steps against one
    folders = [swept / name for name in RUNS]
    for i, found in enumerate(compare(folders)):
        assert found.costs.flop == pytest.approx(costs[i // 2]["flop"], rel=0.01)
        assert found.costs.seconds is not None
        assert found.costs.seconds >= located["seconds"]


def test_the_page_says_what_can_be_said(swept):
    page = (swept / "sweep.html").read_text(encoding="utf-8")
    assert "Without control arms no gain here is transfer" in page
    assert "looks better than it is" in page
    assert "would choose" in page
    for name in ("changes", "along-steps"):
        assert f'<figure id="{name}">' in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "<script" not in page


# resuming


def test_finished_runs_are_not_run_again(pkt, small, swept, monkeypatch):
    before, when = table(swept), times(swept)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a finished run was run again")

    for name in ("align", "inject", "evaluate"):
        monkeypatch.setattr(Run, name, refuse)
    done = pkt("sweep", small, *OVER, "--out", swept, "--workers", "1")
    assert done.code == 0, done.err
    assert table(swept) == before
    assert times(swept) == when


@pytest.mark.parametrize(
    "name", ["delta.safetensors", "scores.jsonl", "summary.json", "valid.json", "model/model.safetensors"]
)
def test_what_was_lost_is_made_again(pkt, small, swept, name):
    before, when = table(swept), times(swept)
    (swept / RUNS[1] / name).unlink()
    done = pkt("sweep", small, *OVER, "--out", swept, "--workers", "1")
    assert done.code == 0, done.err
    assert table(swept) == before
    assert (swept / RUNS[1] / name).is_file()
    changed = {run for run, at in times(swept).items() if at != when[run]}
    assert changed == ({f"{RUNS[1]}/delta.safetensors"} if name == "delta.safetensors" else set())


def test_killed_in_the_middle_it_continues_to_the_same_table(pkt, small, swept, tmp_path):
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "pkt", "sweep", str(small), *OVER, "--out", str(folder), "--workers", "1"]
    process = subprocess.Popen(command, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: (folder / RUNS[2] / "recipe.yaml").is_file(), process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (folder / "sweep.json").exists()
    done = {run for run in RUNS if (folder / run / "sweep-run.json").is_file()}
    assert {RUNS[0], RUNS[1]} <= done < set(RUNS)
    when = times(folder)
    assert pkt("sweep", small, *OVER, "--out", folder, "--workers", "1").code == 0
    assert table(folder) == table(swept)
    assert {run: times(folder)[run] for run in when} == when
    assert not list(folder.rglob(".*"))


def wait_for(what: Callable[[], bool], process: subprocess.Popen) -> None:
    """Until something has happened, while a process runs."""
    end = time.monotonic() + 300
    while not what():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_batch_systems_signal_is_a_ctrl_c(small, tmp_path):
    folder = tmp_path / "ended"
    command = [sys.executable, "-m", "pkt", "sweep", str(small), *OVER, "--out", str(folder), "--workers", "2"]
    process = subprocess.Popen(command, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: any((folder / run / "recipe.yaml").is_file() for run in RUNS), process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; run the same command again" in said
    assert "leaked" not in said
    assert not (folder / "sweep.json").exists()


def test_ctrl_c_keeps_what_is_done(pkt, small, swept, tmp_path, monkeypatch):
    inject, count = Run.inject, []

    def stop(run: Run) -> Path:
        count.append(run)
        if len(count) == 3:
            raise KeyboardInterrupt
        return inject(run)

    folder = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(Run, "inject", stop)
        done = pkt("sweep", small, *OVER, "--out", folder, "--workers", "1")
    assert done.code == 130
    assert "finished stages are kept" in done.err
    when = times(folder)
    assert len(when) == 3
    assert pkt("sweep", small, *OVER, "--out", folder, "--workers", "1").code == 0
    assert table(folder) == table(swept)
    assert {run: times(folder)[run] for run in when} == when


def test_two_processes_give_the_same_table(pkt, small, swept, tmp_path):
    assert pkt("sweep", small, *OVER, "--out", tmp_path / "two", "--workers", "2").code == 0
    assert table(tmp_path / "two") == table(swept)


def test_a_changed_grid_reuses_what_is_in_both(pkt, small, swept):
    when = times(swept)
    other = ("--over", "method.steps=2,3", "--over", "method.transfer_rate=0.1", "--seeds", "2")
    assert pkt("sweep", small, *other, "--out", swept, "--workers", "1").code == 0
    assert [row["point"] for row in read(swept)["points"]] == [f"steps={n},transfer_rate=0.1" for n in (2, 3)]
    assert {run: at for run, at in times(swept).items() if run in when} == when
    assert len(times(swept)) == len(when) + 2
    with (swept / "sweep.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 2


# failures


def failing(monkeypatch, steps: int, error: Exception | None = None) -> None:
    """Runs with so many steps do not end well."""
    error = error or TrainingError("step 2: the loss is not finite;\nlower the learning rate")
    delta = Run._delta

    def fail(run: Run):
        if run.options.steps == steps:
            raise error
        return delta(run)

    monkeypatch.setattr(Run, "_delta", fail)


def test_a_failure_stands_in_the_table_and_the_rest_goes_on(pkt, small, swept, tmp_path, monkeypatch):
    folder = tmp_path / "failed"
    with monkeypatch.context() as patch:
        failing(patch, 1)
        done = pkt("sweep", small, *OVER, "--out", folder, "--workers", "1")
        first = table(folder)
        assert pkt("sweep", small, *OVER, "--out", folder, "--workers", "1").code == 1
        assert table(folder) == first
    assert done.code == 1
    message = "step 2: the loss is not finite; lower the learning rate"
    assert f"steps=1,transfer_rate=0.1 failed: {message}" in done.out
    assert "1 of 2 settings failed" in done.out
    found = read(folder)
    assert [row["error"] for row in found["points"]] == [message, None]
    assert found["groups"][0]["points"] == ["steps=2,transfer_rate=0.1"]
    assert message in (folder / "sweep.html").read_text()
    assert pkt("sweep", small, *OVER, "--out", folder, "--workers", "1").code == 0
    assert table(folder) == table(swept)


def test_an_error_of_somebody_elses_code_ends_one_run_alone(pkt, small, tmp_path, monkeypatch):
    failing(monkeypatch, 1, RuntimeError("CUDA out of memory.\nTried to allocate 20 GiB"))
    done = pkt("sweep", small, *OVER, "--out", tmp_path / "out", "--workers", "1")
    assert done.code == 1
    first, second = read(tmp_path / "out")["points"]
    assert first["error"] == "RuntimeError: CUDA out of memory. Tried to allocate 20 GiB"
    assert second["error"] is None
    assert second["scores"]


def test_every_run_may_fail(pkt, small, tmp_path, monkeypatch):
    failing(monkeypatch, 2)
    done = pkt("sweep", small, "--out", tmp_path / "out", "--workers", "1")
    assert done.code == 1
    assert read(tmp_path / "out")["groups"] == []
    assert "1 of 1 settings failed" in done.out


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (("--over", "method.stepz=1"), ["point stepz=1", "did you mean 'steps'"]),
        (("--over", "method.steps=1,0"), ["point steps=0", "method.steps: found 0"]),
        (("--over", "method.transfer_rate=0.1,0.0001"), ["point transfer_rate=0.0001", "selects no ffn neuron"]),
        (("--over", "method.steps=1,[2]"), ["expected scalars"]),
        (
            ("--over", "task.extract=1,999"),
            ["point extract=999", "task.extract is 999, but the extract split holds 20"],
        ),
        (("--over", "source.name=nano/source,nowhere/at-all"), ["point name=nowhere/at-all", "nowhere/at-all"]),
        (("--over", "seed=1,2"), ["seed cannot be swept"]),
        (("--certify", "--seeds", "1"), ["--certify needs two seeds"]),
        (("--seeds", "0"), ["--seeds"]),
        (("--set", "certificate.tier=knwon"), ["point ", "has no tier 'knwon'"]),
        (("--set", "evaluate.arms=[]"), ["a sweep compares the result with the target"]),
        (("--unsafe-no-sandbox",), ["add --allow-code-execution"]),
    ],
)
def test_nothing_runs_before_all_is_right(pkt, small, tmp_path, given, parts):
    pkt("sweep", small, *given, "--out", tmp_path / "out").refuses(*parts)
    assert not (tmp_path / "out").exists()


def test_folders_that_hold_something_else_are_refused(pkt, small, finished, tmp_path):
    pkt("sweep", small, "--out", finished).refuses("holds files but no sweep")
    (tmp_path / "file").write_text("")
    pkt("sweep", small, "--out", tmp_path / "file").refuses("is a file; give a folder")
    pkt("sweep", small).refuses("--out is missing")
    pkt("sweep", small, "steps", "--out", tmp_path / "out").refuses("is a sweep, which stands alone")


def test_dry_run_lists_the_settings_and_writes_nothing(pkt, small, tmp_path):
    done = pkt("sweep", small, *OVER, "--out", tmp_path / "out", "--dry-run")
    assert done.code == 0
    assert "2 settings, 4 runs" in done.out
    assert "steps=2,transfer_rate=0.1" in done.out
    assert not (tmp_path / "out").exists()
    assert "point steps=0" in pkt("sweep", small, "--over", "method.steps=0", "--dry-run").err


@pytest.mark.parametrize("command", ["run", "certify", "sweep"])
def test_a_dry_run_sees_that_its_folder_is_taken(pkt, small, tmp_path, command):
    (tmp_path / "notes.txt").write_text("mine")
    done = pkt(command, small, "--out", tmp_path, "--dry-run")
    assert done.code == 2
    assert "holds files but no" in done.err


@pytest.mark.parametrize("options", [("--seeds", "2"), ("--over", "method.steps=1,2"), ("--out", "x"), ("--dry-run",)])
def test_a_sweep_of_nothing_is_refused(pkt, options):
    done = pkt("sweep", *options)
    assert done.code == 2
    assert "name recipes or a sweep before the options" in done.err


def test_shipped_sweeps_are_listed(pkt):
    for command in (("sweep",), ("tasks", "--sweeps")):
        found = pkt(*command)
        assert found.code == 0
        assert "low_resource" in found.out
        assert "method.steps=2, 4, 8, 16" in found.out


# certificates and several recipes


def test_certified_points_have_verdicts(pkt, recipe, tmp_path):
    certificate = {"arms": ["random_source"], "factors": [1.0, 10.0]}
    path = recipe(task=TASK, evaluate=EVALUATE, certificate=certificate)
    given = (
        "sweep",
        path,
        "--over",
        "method.steps=1,2",
        "--seeds",
        "2",
        "--certify",
        "--out",
        tmp_path,
        "--workers",
        "1",
    )
    done = pkt(*given)
    assert done.code == 0, done.err
    found, before = read(tmp_path), table(tmp_path)
    assert "Verdicts of the certificates" in done.out
    for row in found["points"]:
        made = json.loads((tmp_path / row["folder"] / "certificate.json").read_text())
        assert row["verdict"] == made["verdict"]
        target = next(one for one in made["comparisons"] if one["arm"] == "target")
        assert [row["change"][key] for key in ("mean", "low", "high")] == pytest.approx(
            [target[key] for key in ("mean", "low", "high")]
        )
        assert row["gain"]["mean"] == made["gain"]["mean"]
        real = next(arm for arm in made["arms"] if arm["arm"] == "real_source")
        assert row["valid_loss"]["mean"] == min(point["loss"] for point in real["curve"])
    assert pkt("verify", tmp_path / "steps=2").code == 0
    assert pkt(*given).code == 0
    assert table(tmp_path) == before


def test_recipes_side_by_side(pkt, recipe, tmp_path):
    other = recipe(task=TASK, evaluate=EVALUATE, method={"name": "sft", "epochs": 1, "lr": 1e-3}, name="tuned")
    one = recipe(task=TASK, evaluate=EVALUATE)
    done = pkt("sweep", one, other, "--over", "task.labels=4,8", "--out", tmp_path / "out", "--workers", "1")
    assert done.code == 0, done.err
    found = read(tmp_path / "out")
    assert [row["point"] for row in found["points"]] == [
        "tiny,labels=4",
        "tiny,labels=8",
        "tuned,labels=4",
        "tuned,labels=8",
    ]
    assert [row["labels"] for row in found["points"]] == [4, 8, 4, 8]
    assert "Score against labels" in (tmp_path / "out" / "sweep.html").read_text()
    assert "One seed: the intervals know the test items alone" in done.out
