"""`pkt certify`: what its folder holds, in which order it was made, and what the arms share and do not share."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from certified_folders import ARMS, ONE_PROCESS, failed, lines, make, read, small_recipe, times, written
from run_folders import temporaries

from pkt.analyzing import analyze, from_names, split_overrides
from pkt.certification import SELECTION, Certification, automatic_workers
from pkt.comparison_entry import entry
from pkt.errors import ConfigError, TrainingError
from pkt.execute import execute
from pkt.extract.attribution import attribute
from pkt.inject.delta import Delta
from pkt.jobs import Jobs
from pkt.machine import Machine
from pkt.models.checkpoint import file_digest
from pkt.models.lm import LM
from pkt.run import Run
from pkt.tasks.sources import task

SEEDS = (0, 1)
pytestmark = pytest.mark.usefixtures("plain_page")


def delta(folder: Path, arm: str, seed: int = 0) -> Delta:
    return Delta.load(folder / "arms" / arm / f"seed-{seed}.safetensors")


def test_folder(certified):
    arms = {p.name for p in (certified / "arms").iterdir()}
    assert arms == {*ARMS, "target", "source", "recipe.json"}
    kept = {p.name for p in certified.iterdir()}
    expected = {"arms", "certificate.json", "env.json", "neurons", "recipe.yaml", "report.html", "stages.json"}
    assert kept == expected | {"summary.json"}
    made = {f"seed-{seed}.{ending}" for seed in SEEDS for ending in ("json", "jsonl", "safetensors")}
    for arm in ARMS:
        names = {p.name for p in (certified / "arms" / arm).iterdir()}
        tried = {f"lr-{point['lr']:g}.json" for point in read(certified / "arms" / arm / "learning_rate.json")["curve"]}
        assert names == made | tried | {"learning_rate.json"}
        assert len(tried) >= 2
    for arm in ("target", "source"):
        assert {p.name for p in (certified / "arms" / arm).iterdir()} == {"model.json", "model.jsonl"}
    assert not temporaries(certified)


def test_certificate_says_what_was_run(certified):
    found = read(certified / "certificate.json")
    assert (found["format"], found["method"], found["task"]) == ("certificate 1", "laten", "nano/gsm8k")
    assert found["items"] == {"tier": "new", "num_items": 4, "num_units": 4}
    assert (found["seeds"], found["selection_seed"], found["preliminary"]) == ([0, 1], SELECTION, True)
    assert found["verdict"] in ("transfer", "tuning", "no_effect", "undecided")
    assert [row["arm"] for row in found["comparisons"]] == ["target", *ARMS[1:]]
    assert [(row["name"], row["unit"]) for row in found["guards"]] == [
        ("known", "score"),
        ("guard text", "nats per token"),
    ]
    assert [row["margin"] for row in found["guards"]] == [found["margin"], 0.05]
    assert found["scores"]["source"] > found["scores"]["target"]
    rows = {row["arm"]: row for row in found["arms"]}
    assert {arm for arm, row in rows.items() if row["reason"] is None} == set(ARMS)
    assert rows["self_source"]["reason"] == "left out by certificate.arms"
    for arm in ARMS:
        scores = [
            [line["score"] for line in lines(certified / "arms" / arm / f"seed-{s}.jsonl") if line["tier"] == "new"]
            for s in SEEDS
        ]
        assert rows[arm]["seed_scores"] == [sum(s) / len(s) for s in scores]
        assert rows[arm]["score"] == pytest.approx(sum(rows[arm]["seed_scores"]) / 2)
        assert rows[arm]["hashes"]["deltas"] == [
            file_digest(certified / "arms" / arm / f"seed-{s}.safetensors") for s in SEEDS
        ]


def test_every_learning_rate_is_the_best_of_its_curve(certified):
    for arm in ARMS:
        fixed = read(certified / "arms" / arm / "learning_rate.json")
        tried = {point["lr"]: point["loss"] for point in fixed["curve"]}
        finite = {lr: loss for lr, loss in tried.items() if loss is not None}
        assert fixed["lr"] == min(finite, key=finite.__getitem__)
        assert fixed["lr_from"] == "search"
        assert fixed["at_edge"] == (fixed["lr"] in (min(tried), max(tried)))
        assert {3e-5, 3e-4} <= tried.keys()
        for lr, loss in tried.items():
            record = read(certified / "arms" / arm / f"lr-{lr:g}.json")
            assert (record["lr"], record["loss"], record["seed"]) == (lr, loss, SELECTION)
        for seed in SEEDS:
            assert read(certified / "arms" / arm / f"seed-{seed}.json")["lr"] == fixed["lr"]
            peak = max(step["lr"] for step in delta(certified, arm, seed).provenance["history"])
            assert peak <= fixed["lr"] * (1 + 1e-9)


def test_every_learning_rate_precedes_every_score(certified):
    arms = certified / "arms"
    tried = [read(p) for p in arms.rglob("lr-*.json")]
    fixed = [read(arms / arm / "learning_rate.json")["fixed"] for arm in ARMS]
    scored = [read(p) for p in [*arms.rglob("seed-*.json"), *arms.rglob("model.json")]]
    assert len(scored) == 3 * 2 + 2
    assert max(record["finished"] for record in tried) <= min(fixed)
    assert max(fixed) <= min(record["started"] for record in scored)
    last_fixed = max((arms / arm / "learning_rate.json").stat().st_mtime_ns for arm in ARMS)
    assert last_fixed < min(p.stat().st_mtime_ns for p in arms.rglob("*.jsonl"))


def test_arms_of_a_seed_have_the_same_batches(certified):
    """With the published init the first step is the target's own loss on the batch, whatever the arm."""
    first = {
        (arm, s): delta(certified, arm, s).provenance["history"][0]["cross_entropy"] for arm in ARMS for s in SEEDS
    }
    for seed in SEEDS:
        for arm in ARMS[1:]:
            assert first[arm, seed] == pytest.approx(first["real_source", seed], abs=1e-3)
    assert abs(first["real_source", 0] - first["real_source", 1]) > 1e-2


def test_arms_differ_but_in_where_they_write(certified):
    """The lines are the target's own highest scores on the extract split, without a source too."""
    target = LM("nano/target", dtype="float32", device="cpu")
    scores = attribute(target, task("nano/gsm8k").split("extract"), "plain").neurons
    for arm in ARMS:
        for layer in range(target.dims.layers):
            for part, kind in (("up", "ffn"), ("down", "ffn"), ("o", "attention")):
                count = int(0.1 * target.dims.neurons(kind))
                best = scores[kind][0, layer].argsort(descending=True)[:count]
                assert delta(certified, arm).changes[layer, part].index.tolist() == sorted(best.tolist())
    made = {file_digest(certified / "arms" / arm / f"seed-{seed}.safetensors") for arm in ARMS for seed in SEEDS}
    assert len(made) == 6


def test_locator_arms_write_elsewhere_and_a_new_arm_leaves_the_others(certified):
    before = times(certified)
    more = ["random_neurons", "wrong_task"]
    given = dict.fromkeys(more, 3e-3)
    make(certified, certificate={"arms": [*ARMS[1:], *more], "learning_rates": given})
    assert {Path(name).parts[0] for name in written(certified, before)} == set(more)
    assert failed(certified) == []
    found = read(certified / "certificate.json")
    rows = {row["arm"]: row for row in found["arms"]}
    assert {rows[arm]["lr_from"] for arm in more} == {"preset"}
    assert found["location"]["answer"] != "not_asked"
    assert "nano/humaneval extract" in found["hashes"]["data"]

    real = delta(certified, "real_source")
    for arm in more:
        shared, total = 0, 0
        for key, change in delta(certified, arm).changes.items():
            assert change.index.shape == real.changes[key].index.shape or key[1] == "v"
            shared += len(set(change.index.tolist()) & set(real.changes[key].index.tolist()))
            total += len(change.index)
        assert shared < 0.8 * total
    seeds = [delta(certified, "random_neurons", s).changes[0, "up"].index.tolist() for s in SEEDS]
    assert seeds[0] != seeds[1]
    wrong = [delta(certified, "wrong_task", s).changes[0, "up"].index.tolist() for s in SEEDS]
    assert wrong[0] == wrong[1]
    maps = {
        arm: {k: v["map"] for k, v in delta(certified, arm).provenance["layers"].items()}
        for arm in (*more, "real_source")
    }
    assert maps["random_neurons"] == maps["real_source"]


def test_two_processes_make_the_same_deltas(certified, tmp_path):
    rates = {arm: read(certified / "arms" / arm / "learning_rate.json")["lr"] for arm in ARMS}
    machine = Machine(device="cpu", workers=2)
    found = make(tmp_path / "two", machine, certificate={"learning_rates": rates})
    hashes = {row["arm"]: row["hashes"]["deltas"] for row in found["arms"] if row["reason"] is None}
    alone = read(certified / "certificate.json")["arms"]
    assert hashes == {row["arm"]: row["hashes"]["deltas"] for row in alone if row["reason"] is None}


def test_deltas_are_not_kept_where_not_wanted(certified):
    for path in (certified / "arms").rglob("seed-*.json*"):
        path.unlink()
    make(certified, certificate={"keep_deltas": False})
    assert len(list(certified.rglob("seed-*.jsonl"))) == 6
    left = {p.name for p in (certified / "arms" / "real_source").iterdir() if p.suffix == ".safetensors"}
    assert not left
    again = times(certified)
    make(certified, certificate={"keep_deltas": False})
    assert written(certified, again) == set()
    assert failed(certified) == []


def test_deltas_wanted_later_are_made(certified):
    shutil.rmtree(certified / "arms" / "no_source")
    make(certified, certificate={"keep_deltas": False})
    make(certified, certificate={"keep_deltas": True})
    assert (certified / "arms" / "no_source" / "seed-0.safetensors").is_file()
    assert failed(certified) == []


def test_another_recipe_in_the_folder_moves_the_certificate_aside(certified, caplog):
    same = small_recipe(evaluate={"limit": 4, "arms": []})
    execute(same, certified, ONE_PROCESS)
    assert (certified / "certificate.json").is_file()
    assert "is of another recipe" not in caplog.text
    assert "learning_rates: search" in (certified / "recipe.yaml").read_text()
    execute(same.model_copy(update={"method": {**same.method, "steps": 1}}), certified, ONE_PROCESS)
    assert not (certified / "certificate.json").exists()
    assert "certificate.json is of another recipe: moved to certificate.stale.json" in caplog.text
    assert (certified / "certificate.stale.json").is_file()


def test_arms_of_another_recipe_count_no_more(certified, monkeypatch):
    """Neither where the other recipe's certificate was stopped on its way, nor where it does something else in the folder."""
    work, done = Jobs.work, []

    def stopped(jobs, job):
        if job.kind == "transfer":
            done.append(job)
            if len(done) == 4:
                raise KeyboardInterrupt
        return work(jobs, job)

    other = {"method": {"steps": 1}, "certificate": {"learning_rates": "recipe"}}
    with monkeypatch.context() as patched:
        patched.setattr(Jobs, "work", stopped)
        with pytest.raises(KeyboardInterrupt):
            make(certified, **other)
    assert entry(certified).state == "unfinished: 1 of 2 seeds"
    assert not (certified / "report.html").exists()
    Run(small_recipe(method={"steps": 3}), certified, ONE_PROCESS).start()
    assert entry(certified).state == "unfinished: nothing is scored yet"
    make(certified, **other)
    assert entry(certified).state == "certified"


def test_a_certificate_that_rests_on_other_weights_is_aside_before_they_are_scored(certified, monkeypatch):
    monkeypatch.setattr(Jobs, "key", lambda jobs, job, key=Jobs.key: f"other {key(jobs, job)}")
    monkeypatch.setattr(Certification, "_learning_rates", lambda made, *_: pytest.fail("stopped"))
    with pytest.raises(pytest.fail.Exception, match="stopped"):
        make(certified)
    assert not (certified / "certificate.json").exists()
    assert entry(certified).state == "unfinished: 0 of 2 seeds"


def test_a_certificate_of_another_recipe_is_aside_before_work_starts(certified, monkeypatch):
    def stop(made):
        raise KeyboardInterrupt

    monkeypatch.setattr(Certification, "make", stop)
    with pytest.raises(KeyboardInterrupt):
        make(certified, method={"steps": 1})
    assert not (certified / "certificate.json").exists()
    assert (certified / "certificate.stale.json").is_file()
    assert entry(certified).verdict is None


def test_an_analysis_in_the_folder_leaves_the_certificate_as_it_is(certified):
    recipe = certified / "recipe.yaml"
    before = recipe.read_text()
    small = ("analysis.positions=64", "analysis.permutations=20", "analysis.groups=5", "analysis.untrained=false")
    from_names("representation", str(recipe), small, certified, ONE_PROCESS)
    assert list((certified / "neurons").glob("gram-*"))
    assert failed(certified) == []
    from_names(
        "representation", str(recipe), ("evaluate.limit=3", "certificate.seeds=9", *small), certified, ONE_PROCESS
    )
    cfg, _ = split_overrides("representation", small)
    analyze(
        "representation", small_recipe(), cfg, certified, ONE_PROCESS
    )  # as it was given, without the method's defaults
    assert recipe.read_text() == before
    with pytest.raises(
        ConfigError,
        match=r"holds a run of another recipe \(another method\); analyse .*recipe.yaml there, or give another folder",
    ):
        from_names("representation", str(recipe), ("method.steps=1", *small), certified, ONE_PROCESS)
    assert recipe.read_text() == before


def test_locating_again_keeps_the_section_of_the_certificate(certified, pkt, tmp_path):
    before = (certified / "recipe.yaml").read_text()
    plain = yaml.safe_load(before)
    del plain["certificate"]
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(plain))
    assert pkt("locate", tmp_path / "plain.yaml", "--out", certified).code == 0
    assert (certified / "recipe.yaml").read_text() == before
    assert failed(certified) == []


def test_a_source_that_is_the_target_has_no_lead(tmp_path, monkeypatch):
    monkeypatch.undo()  # with the real page, that all of it is drawn
    found = make(tmp_path / "out", source="nano/target", certificate={"learning_rates": "recipe"})
    assert (found["lead"], found["margin"]) == (0.0, None)
    assert found["verdict"] == "undecided"
    assert "nothing to transfer" in found["reason"]
    assert {row["name"]: row["harmed"] for row in found["guards"]}["known"] is None
    assert failed(tmp_path / "out") == []
    assert "nothing to transfer" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_dry_run_lists_the_arms_and_writes_nothing(pkt, tmp_path, monkeypatch):
    monkeypatch.setattr(LM, "_load", lambda lm: pytest.fail(f"{lm.name} was loaded"))
    done = pkt("certify", "nano_published", "--out", tmp_path / "out", "--dry-run")
    assert (done.code, done.err) == (0, "")
    rows = {line.split()[0]: line for line in done.out.splitlines() if line.strip()}
    assert {"real_source", "random_source", "shuffled_source", "self_source", "no_source"} <= rows.keys()
    assert {"random_neurons", "wrong_task"} <= rows.keys()
    assert "35 runs to choose learning rates" in done.out
    assert "35 runs to score (7 arms, 5 seeds)" in done.out
    assert "decided by new test items" in done.out
    assert list(tmp_path.iterdir()) == []


def test_a_task_from_a_folder_has_no_wrong_task_of_its_own(recipe, tmp_path):
    from pkt.recipe_files import load_recipe

    made = Certification(Run(load_recipe(str(recipe())), tmp_path))
    assert made.absent == {"wrong_task": "no other task was named: set certificate.wrong_task"}
    assert made.tier is None
    named = load_recipe(str(recipe(certificate={"wrong_task": "nano/mmlu"})))
    assert Certification(Run(named, tmp_path)).absent == {}


def test_training_that_diverges_at_every_rate_is_one_line(certified):
    before = read(certified / "certificate.json")
    with pytest.raises(TrainingError, match="real_source: training diverged at every learning rate from") as e:
        make(certified, method={"lr": 1e33, "norm_weight": 0.0}, certificate={"arms": []})
    assert "\n" not in str(e.value)
    assert not (certified / "certificate.json").exists()  # the folder is no longer of that recipe
    assert read(certified / "certificate.stale.json") == before


def test_an_arm_that_diverges_at_a_given_rate_is_named(certified):
    rates = {"real_source": 3e-5, "no_source": 1e30}
    with pytest.raises(TrainingError, match="no_source"):
        make(certified, method={"norm_weight": 0.0}, certificate={"arms": ["no_source"], "learning_rates": rates})


def test_as_many_processes_as_cores_and_memory_allow(tmp_path, monkeypatch):
    def workers(device: str = "cpu", gib: float = 64) -> int:
        free = SimpleNamespace(available=int(gib * 2**30))
        monkeypatch.setattr("psutil.virtual_memory", lambda: free)
        return automatic_workers(Run(small_recipe(), tmp_path, Machine(device=device)))

    monkeypatch.setattr("pkt.certification.cores", lambda: 4)
    assert workers() == 4
    assert workers(gib=2.5) == 2
    assert workers(gib=0.1) == 1
    assert workers("offload") == 1
