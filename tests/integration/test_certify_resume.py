"""A certificate that was stopped, damaged or changed: the same command makes what is missing, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from certified_folders import ARMS, edit, failed, lines, make, read, result, times, written

from pkt.certification import SELECTION
from pkt.jobs import Jobs
from pkt.models.lm import LM

pytestmark = pytest.mark.usefixtures("plain_page")


def refuse(*_, **__):
    raise AssertionError("a finished job was done again")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))


def test_what_is_done_loads_no_model_again(certified, monkeypatch):
    before, was = times(certified), read(certified / "certificate.json")
    monkeypatch.setattr(LM, "_load", refuse)
    monkeypatch.setattr(Jobs, "work", refuse)
    make(certified)
    assert written(certified, before) == set()
    assert read(certified / "certificate.json") | {"code": None} == was | {"code": None}


@pytest.mark.parametrize(
    ("name", "damage", "made"),
    [
        ("real_source/seed-0.json", Path.unlink, {"real_source/seed-0"}),
        ("real_source/seed-0.json", truncate, {"real_source/seed-0"}),
        ("random_source/seed-1.jsonl", Path.unlink, {"random_source/seed-1"}),
        ("random_source/seed-1.jsonl", change_a_byte, {"random_source/seed-1"}),
        ("no_source/seed-0.safetensors", Path.unlink, {"no_source/seed-0"}),
        ("no_source/seed-0.safetensors", change_a_byte, {"no_source/seed-0"}),
        ("target/model.jsonl", truncate, {"target/model"}),
        ("source/model.json", Path.unlink, {"source/model"}),
        ("no_source/lr-3e-05.json", Path.unlink, {"no_source/lr-3e-05"}),
        ("no_source/lr-3e-05.json", truncate, {"no_source/lr-3e-05"}),
        ("no_source/learning_rate.json", Path.unlink, {"no_source/learning_rate"}),
        ("no_source/learning_rate.json", truncate, {"no_source/learning_rate"}),
    ],
)
def test_a_damaged_file_alone_is_made_anew(certified, name, damage, made):
    was = result(certified)
    damage(certified / "arms" / name)
    before = times(certified)
    make(certified)
    assert {file.rsplit(".", 1)[0] for file in written(certified, before)} == made
    assert result(certified) == was
    assert failed(certified) == []


def test_damaged_scores_of_neurons_are_made_anew(certified):
    """Those of the other task too, on which `wrong_task` locates: cut short, or readable but not what was written."""
    recipe = {"certificate": {"arms": ["wrong_task"], "learning_rates": "recipe"}}
    before = set((certified / "neurons").glob("*.safetensors"))
    make(certified, **recipe)
    everything = {p: p.read_bytes() for p in (certified / "neurons").glob("*.safetensors")}
    assert len(everything) == 4
    was = result(certified)
    for damage, paths in ((change_a_byte, before), (change_a_byte, everything), (truncate, everything)):
        for path in paths:
            damage(path)
        for path in (certified / "arms" / "wrong_task").glob("seed-0.*"):
            path.unlink()
        make(certified, **recipe)
        assert {p: p.read_bytes() for p in (certified / "neurons").glob("*.safetensors")} == everything
        assert result(certified) == was


def test_interrupted_again_and_again(certified, tmp_path, monkeypatch):
    """Every call does a few jobs; the last one ends with what a single call makes."""
    folder, work, calls = tmp_path / "out", Jobs.work, []
    for _ in range(20):
        with monkeypatch.context() as patch:
            count = iter(range(8))

            def some(jobs, job, count=count):
                if next(count) == 7:
                    raise KeyboardInterrupt
                calls.append((job.arm, job.kind, job.lr, job.seed))
                return work(jobs, job)

            patch.setattr(Jobs, "work", some)
            try:
                make(folder)
                break
            except KeyboardInterrupt:
                assert not (folder / "certificate.json").exists()
    assert len(calls) == len(set(calls)) > 2 * 7
    assert result(folder) == result(certified)
    assert {p.relative_to(folder) for p in folder.rglob("*")} == {
        p.relative_to(certified) for p in certified.rglob("*")
    }
    assert failed(folder) == []


def test_a_new_seed_leaves_the_others(certified):
    """Nor are learning rates searched again: their seed is never scored."""
    rates = {arm: read(certified / "arms" / arm / "learning_rate.json")["lr"] for arm in ARMS}
    before = times(certified)
    make(certified, certificate={"seeds": 3})
    found = read(certified / "certificate.json")
    assert (found["seeds"], found["selection_seed"]) == ([0, 1, 2], SELECTION)
    again = {arm: read(certified / "arms" / arm / "learning_rate.json")["lr"] for arm in ARMS}
    assert again == rates
    assert {name.split("/")[1].split(".")[0] for name in written(certified, before)} == {"seed-2"}
    assert failed(certified) == []


def test_a_certificate_with_given_rates_can_be_searched_after_all(certified):
    """The rates turn out the same, so that nothing is scored again."""
    rates = {arm: read(certified / "arms" / arm / "learning_rate.json")["lr"] for arm in ARMS}
    make(certified, certificate={"learning_rates": rates})
    before = times(certified)
    make(certified)
    assert not [name for name in written(certified, before) if "seed-" in name]
    assert failed(certified) == []


def test_another_option_redoes_what_depends_on_it(certified):
    before = times(certified)
    rates = {arm: read(certified / "arms" / arm / "learning_rate.json")["lr"] for arm in ARMS}
    make(certified, evaluate={"limit": 3}, certificate={"learning_rates": rates})
    made = written(certified, before)
    assert {name for name in made if name.endswith(".jsonl")} == {
        *(f"{arm}/seed-{seed}.jsonl" for arm in ARMS for seed in (0, 1)),
        "target/model.jsonl",
        "source/model.jsonl",
    }
    assert not [name for name in made if "lr-" in name]
    assert len([line for line in lines(certified / "arms" / "target" / "model.jsonl") if line["tier"] == "new"]) == 3


def test_a_record_of_other_inputs_is_not_used(certified):
    edit(certified / "arms" / "real_source" / "seed-1.json", lambda record: record.update(key="0" * 64))
    before = times(certified)
    make(certified)
    assert {name.split(".")[0] for name in written(certified, before)} == {"real_source/seed-1"}
