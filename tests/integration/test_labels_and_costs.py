"""A budget of labels reaches every stage; what a delta took is recorded."""

from __future__ import annotations

from pathlib import Path

import certified_folders
import pytest
from certified_folders import ONE_PROCESS, read, small_recipe

from pkt.certification import Certification
from pkt.errors import DataError
from pkt.execute import execute
from pkt.extract.attribution import attribute
from pkt.flops import counted
from pkt.inject.delta import Delta
from pkt.jobs import Job
from pkt.run import Run
from pkt.stages import flop_of

STEPS, EXTRACT, ALIGN = 2, 20, 80


def run_of(folder: Path, **changes: object) -> Run:
    return Run(small_recipe(**changes), folder, ONE_PROCESS)


def test_the_budget_reaches_location_training_keys_and_the_other_task(tmp_path):
    whole = run_of(tmp_path / "a")
    few = run_of(tmp_path / "b", task={"labels": 10})
    assert [len(few.task.split(name)) for name in ("extract", "align")] == [2, 8]
    assert few.task.location == whole.task.split("extract")[:2]
    assert few.task.split("test") == whole.task.split("test")
    assert few.task.split("valid") == whole.task.split("valid")
    certification = Certification(few)
    wrong = certification.wrong_task
    assert wrong is not None
    assert len(wrong.split("extract")) == 2
    job = Job("transfer", "real_source", 3e-5, 0)
    assert certification.jobs().key(job) != Certification(whole).jobs().key(job)
    assert certification.data()["nano/gsm8k extract"] != Certification(whole).data()["nano/gsm8k extract"]


def test_a_budget_that_the_task_does_not_have_is_one_line(pkt, recipe, tmp_path):
    found = pkt("run", recipe(), "--out", tmp_path / "out", "--set", "task.labels=6")
    assert (found.code, found.out) == (2, "")
    assert found.err == (
        "error: gsm8k: task.labels is 6, but the method's splits hold 5 examples (extract 2, align 3); lower it, or set it to "
        "null for all\n"
    )
    assert not (tmp_path / "out").exists()


def test_a_run_records_operations_labels_and_steps(finished, recipe):
    stages, summary = read(finished / "stages.json"), read(finished / "summary.json")
    said = Delta.load(finished / "delta.safetensors").provenance
    assert (said["labels"], said["steps"]) == (5, 2)
    assert {k: summary[k] for k in ("labels", "steps", "trained_parameters")} == {
        k: said[k] for k in ("labels", "steps", "trained_parameters")
    }
    assert summary["flop"] == stages["locate"]["flop"] + stages["align"]["flop"]
    assert {c["stage"]: c.get("flop") for c in summary["costs"]}["align"] == stages["align"]["flop"]
    assert all("flop" not in record for name, record in stages.items() if name not in ("locate", "align"))

    run = Run.resume(finished)
    with counted() as count:
        for lm in (run.source, run.target):
            lm.memo = None
            attribute(lm, run.task.location, run.style, run.options.attribution)
    assert stages["locate"]["flop"] == count.flop > 0


def test_operations_of_a_stage_that_found_scores_already_made_stay(finished):
    before = read(finished / "stages.json")["locate"]["flop"]
    lost = sorted((finished / "neurons").glob("*.safetensors"))[0]
    lost.unlink()
    Run.resume(finished, ONE_PROCESS).locate()
    assert read(finished / "stages.json")["locate"]["flop"] == before


def test_scores_that_another_recipe_made_count_for_every_recipe(recipe, finished, pkt):
    """The stages differ, the files are the same: none is made again."""
    before = read(finished / "stages.json")["locate"]
    assert pkt("locate", recipe(), "--out", finished, "--set", "method.alignment=moments").code == 0
    after = read(finished / "stages.json")["locate"]
    assert after["key"] != before["key"]
    assert (after["files"], after["flop"]) == (before["files"], before["flop"])
    assert after["seconds"] > 0.5 * before["seconds"]


@pytest.mark.parametrize("text", [None, "", "[]", '{"flop": "x", "seconds": 1}', '{"flop": null, "seconds": 1}'])
def test_what_location_took_is_not_known_without_its_record(recipe, finished, pkt, text):
    for path in (finished / "neurons").glob("*.cost.json"):
        path.unlink() if text is None else path.write_text(text)
    assert pkt("locate", recipe(), "--out", finished, "--set", "method.alignment=moments").code == 0
    assert read(finished / "stages.json")["locate"]["flop"] is None


def test_a_method_that_locates_nothing_is_not_charged_for_another_ones_location(certified):
    other = small_recipe(certificate={"arms": []}).model_copy(update={"method": {"name": "sft"}})
    run = Run(other, certified, ONE_PROCESS)
    assert "locate" in read(certified / "stages.json")
    run.start()
    Certification(run).locate()
    assert "locate" not in read(certified / "stages.json")


@pytest.mark.parametrize(
    ("stages", "flop"),
    [
        ({"locate": {"flop": 3}, "align": {"flop": 5}}, 8),
        ({"align": {"flop": 0}}, 0),
        ({"locate": {"flop": 0}, "align": {"flop": 5}}, None),
        ({"locate": {"flop": None}, "align": {"flop": 5}}, None),
        ({"locate": {}, "align": {"flop": 5}}, None),
        ({"locate": {"flop": 3}}, None),
    ],
)
def test_operations_of_a_run_are_those_of_location_and_alignment(stages, flop):
    assert flop_of(stages) == flop


def test_an_arm_records_what_its_delta_took(certified):
    records = {seed: read(certified / "arms" / "real_source" / f"seed-{seed}.json") for seed in (0, 1)}
    row = next(row for row in read(certified / "certificate.json")["arms"] if row["arm"] == "real_source")
    for record in records.values():
        assert (record["labels"], record["steps"]) == (EXTRACT + ALIGN, STEPS)
        assert 0 < record["delta_seconds"] <= record["seconds"]
    assert row["flop"] == sum(record["flop"] for record in records.values()) / 2 > 0
    assert (row["labels"], row["steps"]) == (EXTRACT + ALIGN, STEPS)
    absent = next(row for row in read(certified / "certificate.json")["arms"] if row["reason"])
    assert absent["flop"] is absent["labels"] is absent["delta_seconds"] is None


def test_an_arm_takes_what_a_run_takes(certified, tmp_path, plain_page):
    """Scoring is not counted, location once."""
    run = execute(small_recipe(evaluate={"limit": 4, "arms": []}), tmp_path / "run", ONE_PROCESS)
    assert run.stages.records()["align"]["flop"] == read(certified / "arms" / "real_source" / "seed-0.json")["flop"]
    located = read(certified / "stages.json")["locate"]["flop"]
    assert run.stages.records()["locate"]["flop"] == located


def test_fewer_labels_take_fewer_operations(tmp_path, plain_page):
    whole, few = (
        execute(small_recipe(evaluate={"arms": []}, task={"labels": labels}), tmp_path / str(labels), ONE_PROCESS)
        for labels in (None, 10)
    )
    records = [run.stages.records() for run in (whole, few)]
    assert records[1]["locate"]["flop"] < records[0]["locate"]["flop"]
    assert records[1]["align"]["flop"] < records[0]["align"]["flop"]
    assert read(few.folder / "summary.json")["labels"] == 10


def test_a_method_without_labelled_examples(tmp_path):
    with pytest.raises(DataError, match="reads no labelled example"):
        _ = run_of(tmp_path / "x", task={"labels": 4}).task.limited(4, ())


def test_certificates_of_budgets_differ(tmp_path, certified):
    stated = read(certified / "certificate.json")["hashes"]["recipe"]
    assert run_of(tmp_path / "y").certified_key() == stated
    assert run_of(tmp_path / "z", task={"labels": 10}).certified_key() != stated
    assert certified_folders.failed(certified) == []
