"""A folder whose hashes and verdict were all made to fit: what is left to see is what cannot be made to fit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from certified_folders import ARMS, ONE_PROCESS, edit, failed, make, read
from safetensors.torch import load_file, save_file

import pkt.evidence
from pkt.certification import Certification
from pkt.files import write_json
from pkt.models.checkpoint import file_digest
from pkt.run import Run
from pkt.tasks.sources import task
from pkt.verify import rerun, verify

pytestmark = pytest.mark.usefixtures("plain_page")


def forge(folder: Path) -> None:
    """Write the certificate that follows from the files as they are now, with a record that fits each score file."""
    for path in (folder / "arms").rglob("*.json"):
        record = read(path)
        if "files" in record:
            record["files"] = {name: file_digest(path.parent / name) for name in record["files"]}
            write_json(path, record)
    made = Certification(Run.resume(folder, ONE_PROCESS))
    write_json(folder / "certificate.json", pkt.evidence.certificate(made))


def right_answers(tier: str) -> dict[str, str]:
    return {e.id: e.response for e in task("nano/gsm8k").split("test") if e.tier == tier}


@pytest.mark.parametrize("name", ["real_source/seed-0", "random_source/seed-1", "target/model", "source/model"])
def test_scores_that_do_not_follow_from_outputs_cannot_be_forged(certified, name):
    """Every hash and the verdict are made to fit: what is left is what the model wrote."""
    path, answers = certified / "arms" / f"{name}.jsonl", right_answers("new")

    def change(content: list[dict]) -> None:
        line = next(line for line in content if line["tier"] == "new")
        line["output"] = "no answer" if line["score"] else answers[line["id"]]

    edit(path, change)
    forge(certified)
    assert failed(certified) == ["grades"]


def test_a_forged_score_of_another_task_is_found(certified):
    """Harm is looked for on guard tasks: their grades follow from outputs too."""
    rates = {arm: read(certified / "arms" / arm / "learning_rate.json")["lr"] for arm in ARMS}
    make(certified, certificate={"guard_tasks": ["nano/mbpp"], "learning_rates": rates, "arms": []})
    assert failed(certified) == []

    def change(content: list[dict]) -> None:
        line = next(line for line in content if line["task"] == "nano/mbpp")
        line["score"] = 1.0 - line["score"]

    edit(certified / "arms" / "real_source" / "seed-0.jsonl", change)
    forge(certified)
    assert failed(certified) == ["grades"]


def test_a_delta_that_nobody_can_make_again_is_found(certified):
    """Its hash stands in the record and the certificate, but the method does not give it."""
    path = certified / "arms" / "real_source" / "seed-0.safetensors"
    header_kept = load_file(path)
    save_file({name: t + 1 if t.is_floating_point() else t for name, t in header_kept.items()}, path)
    edit(path.with_suffix(".json"), lambda record: record.update(delta=file_digest(path)))
    forge(certified)
    assert failed(certified) == []
    first, second = rerun(certified, "real_source", ONE_PROCESS)
    assert (first.holds, second.holds) == (False, True)
    assert "other bytes than recorded" in first.detail


def test_a_forged_folder_that_was_not_changed_holds(certified):
    before = (certified / "certificate.json").read_bytes()
    forge(certified)
    assert failed(certified) == []
    assert len((certified / "certificate.json").read_bytes()) == len(before)


def test_a_rule_in_the_words_of_other_code_is_noted(certified):
    """The words may change and the rule not; a certificate of this very code has its words."""
    path = certified / "certificate.json"
    edit(path, lambda found: found.update(rule="L and U are 95% bounds of the difference."))
    assert failed(certified) == ["verdict"]
    edit(path, lambda found: found["code"].update(sources=["0" * 64]))
    checks = {check.name: check for check in verify(certified, ONE_PROCESS)}
    assert [name for name, check in checks.items() if check.holds is False] == []
    assert (checks["rule"].holds, checks["rule"].detail) == (None, "in other words than those of this code")
    edit(path, lambda found: found.update(level=0.9))
    assert failed(certified) == ["verdict"]


def test_an_arm_trained_at_another_rate_than_the_fixed_one_is_found(certified, tmp_path):
    """Everything in the folder was really made, but one arm at a rate that its curve did not choose."""
    other = Path(shutil.copytree(certified, tmp_path / "other"))
    rates = {arm: read(certified / "arms" / arm / "learning_rate.json")["lr"] for arm in ARMS}
    make(other, certificate={"learning_rates": rates | {"no_source": 3e-5}})
    for path in (other / "arms" / "no_source").glob("seed-*"):
        shutil.copy(path, certified / "arms" / "no_source")
    forge(certified)
    assert failed(certified) != []


def test_a_rate_that_is_not_the_best_of_its_curve_is_found(certified):
    """A control arm trained badly makes any method look good."""
    edit(certified / "arms" / "no_source" / "learning_rate.json", lambda record: record.update(lr=3e-5))
    for seed in (0, 1):
        edit(certified / "arms" / "no_source" / f"seed-{seed}.json", lambda record: record.update(lr=3e-5))
    forge(certified)
    assert failed(certified) != []


def test_a_curve_that_is_not_that_of_its_records_is_found(certified):
    path = certified / "arms" / "no_source" / "learning_rate.json"
    edit(path, lambda record: record["curve"][0].update(loss=record["curve"][0]["loss"] + 1))
    forge(certified)
    assert failed(certified) != []
