"""`pkt verify`: an untouched folder holds, and whatever is changed in it fails in the check that looks there."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from certified_folders import ARMS, ONE_PROCESS, edit, failed, lines, read

from pkt.errors import ConfigError, PktError
from pkt.jobs import Jobs
from pkt.models.checkpoint import file_digest
from pkt.verify import rerun, verify

NAMES = [
    "code",
    "source weights",
    "target weights",
    "recipe",
    "data",
    "location",
    "scores of target and source",
    *ARMS,
    "verdict",
    *(f"{arm}, records" for arm in ARMS),
    "target and source, records",
    "deltas",
    "grades",
]


def test_files_that_a_certificate_states_beyond_what_its_records_name(certified):
    """Older certificates stated all that lay in the memo."""
    extra = certified / "neurons" / "answers-0123.jsonl"
    extra.write_text("{}\n")
    assert failed(certified) == []
    edit(
        certified / "certificate.json",
        lambda found: found["hashes"]["location"].update({extra.name: file_digest(extra)}),
    )
    assert failed(certified) == []
    extra.write_text("{ }\n")
    assert failed(certified) == ["location"]
    extra.unlink()
    assert failed(certified) == ["location"]


def flip(path: Path, tier: str = "new") -> None:
    """Give the first item of a tier the other score."""

    def change(content: list[dict]) -> None:
        line = next(line for line in content if line["tier"] == tier)
        line["score"] = 1.0 - line["score"]

    edit(path, change)


def flipped_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def test_an_untouched_folder_holds(certified):
    before = {p: p.read_bytes() for p in certified.rglob("*") if p.is_file()}
    checks = verify(certified, ONE_PROCESS)
    names = [check.name for check in checks]
    assert [name for name in names if name in NAMES] == NAMES
    assert len(names) == len(set(names))
    assert [check.name for check in checks if check.holds is False] == []
    details = {check.name: check.detail for check in checks}
    assert details["deltas"] == "6 files"
    scored = [line for path in (certified / "arms").glob("*/*.jsonl") for line in lines(path) if "output" in line]
    assert len(scored) == 8 * 20  # target, source and six deltas on four items of five tiers
    assert int(details["grades"].split()[0]) >= 7 * 20
    assert {p: p.read_bytes() for p in certified.rglob("*") if p.is_file()} == before


def test_a_folder_may_be_moved(certified, tmp_path):
    assert failed(Path(shutil.move(certified, tmp_path / "elsewhere"))) == []


@pytest.mark.parametrize("name", ["real_source/seed-0", "no_source/seed-1", "target/model"])
def test_a_flipped_score(certified, name):
    flip(certified / "arms" / f"{name}.jsonl")
    found = failed(certified)
    arm = name.split("/")[0]
    assert {"verdict", "grades", "scores of target and source" if arm == "target" else arm} <= set(found)
    assert set(found) <= {"verdict", "grades", "scores of target and source", *ARMS}


def test_a_flipped_score_of_the_source(certified):
    flip(certified / "arms" / "source" / "model.jsonl")
    assert {"verdict", "scores of target and source"} <= set(failed(certified))


def test_a_flipped_score_of_a_guard(certified):
    flip(certified / "arms" / "real_source" / "seed-1.jsonl", "known")
    assert {"verdict", "real_source", "grades"} == set(failed(certified))


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update(verdict="transfer"),
        lambda c: c.update(margin=0.5),
        lambda c: c["comparisons"][0].update(low=0.1),
        lambda c: c["comparisons"].pop(),
        lambda c: c["guards"][0].update(harmed=True),
        lambda c: c.update(seeds=[0, 1, 2, 3, 4]),
        lambda c: c.update(preliminary=False),
        lambda c: c["items"].update(num_units=400),
        lambda c: c.update(reason="The target improves."),
        lambda c: c.update(sworn="by me"),
        lambda c: c["arms"][0].update(lr=1.0),
    ],
)
def test_an_edited_certificate(certified, change):
    edit(certified / "certificate.json", change)
    assert failed(certified) == ["verdict"]


@pytest.mark.parametrize("key", ["source", "target"])
def test_other_weights(certified, key):
    edit(certified / "certificate.json", lambda c: c[key].update(weights="0" * 64))
    assert failed(certified) == [f"{key} weights"]


def test_other_data(certified):
    edit(certified / "certificate.json", lambda c: c["hashes"]["data"].update({"nano/gsm8k test": "0" * 64}))
    assert failed(certified) == ["data"]


def test_a_changed_delta(certified):
    flipped_byte(certified / "arms" / "random_source" / "seed-1.safetensors")
    assert failed(certified) == ["deltas"]
    (certified / "arms" / "random_source" / "seed-1.safetensors").unlink()
    assert failed(certified) == ["deltas"]


def test_a_changed_record_of_a_delta(certified):
    path = certified / "arms" / "random_source" / "seed-1.safetensors"
    flipped_byte(path)
    edit(path.with_suffix(".json"), lambda record: record.update(delta=file_digest(path)))
    assert "random_source" in failed(certified)


def test_an_edited_learning_rate(certified):
    path = certified / "arms" / "no_source" / "learning_rate.json"
    edit(path, lambda record: record["curve"][0].update(loss=9.0))
    assert {"no_source", "verdict"} <= set(failed(certified))


@pytest.mark.parametrize(
    ("old", "new"),
    [("  steps: 2\n  schedule", "  steps: 3\n  schedule"), ("limit: 4", "limit: 5"), ("seed: 0", "seed: 1")],
)
def test_an_edited_recipe(certified, old, new):
    path = certified / "recipe.yaml"
    assert path.read_text().count(old) == 1
    path.write_text(path.read_text().replace(old, new))
    found = failed(certified)
    assert "recipe" in found or found == ["files"]  # other seeds have no files


def test_an_arm_scored_before_its_rate_was_fixed(certified):
    edit(certified / "arms" / "random_source" / "seed-1.json", lambda record: record.update(started="2000-01-01"))
    assert failed(certified) == ["random_source, records"]


def test_a_rate_that_is_not_the_recipes(certified):
    path = certified / "arms" / "no_source" / "learning_rate.json"
    edit(path, lambda record: record.update(curve=[]))
    assert {"no_source", "verdict", "no_source, records"} == set(failed(certified))
    recipe = certified / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("learning_rates: search", "learning_rates: recipe"))
    lr = read(path)["lr"]
    assert any(f"learning rate {lr} is not that of the recipe" in text for text in complaints(certified))


def test_a_record_of_another_recipe(certified):
    edit(certified / "arms" / "random_source" / "seed-1.json", lambda record: record.update(key="0"))
    edit(certified / "arms" / "source" / "model.json", lambda record: record.update(key="0"))
    assert failed(certified) == ["random_source, records", "target and source, records"]


def test_other_scores_of_neurons(certified):
    path = sorted((certified / "neurons").glob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert failed(certified) == ["location"]


def complaints(folder: Path) -> list[str]:
    """What is wrong, in lines: failed checks, or why nothing could be checked."""
    try:
        checks = verify(folder, ONE_PROCESS)
    except PktError as e:
        return [str(e)]
    return [check.detail for check in checks if check.holds is False]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("arms/real_source/seed-0.jsonl", "gone"),
        ("arms/real_source/seed-0.jsonl", "cut"),
        ("arms/real_source/seed-0.jsonl", "[{}]"),
        ("arms/real_source/seed-0.jsonl", '{"task": "nano/gsm8k", "id": "x", "tier": "new"}\n'),
        ("arms/real_source/seed-0.json", "gone"),
        ("arms/real_source/seed-0.json", "cut"),
        ("arms/real_source/seed-0.json", "{}"),
        ("arms/no_source/learning_rate.json", "gone"),
        ("arms/no_source/learning_rate.json", "cut"),
        ("arms/no_source/learning_rate.json", "{}"),
        ("arms/no_source/lr-3e-05.json", "gone"),
        ("arms/target/model.jsonl", "gone"),
        ("arms/target/model.jsonl", "twice"),
        ("arms/source/model.jsonl", "gone"),
        ("recipe.yaml", "gone"),
        ("recipe.yaml", "cut"),
    ],
)
def test_missing_and_damaged_files_fail_in_one_line(certified, name, damage):
    path = certified / name
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"cut": content[: len(content) // 2], "twice": content * 2}.get(damage, damage.encode()))
    found = complaints(certified)
    assert found
    assert not [text for text in found if "\n" in text]


@pytest.mark.parametrize("key", ["arms", "hashes", "source", "comparisons", "seeds"])
def test_a_certificate_that_lacks_a_part_fails(certified, key):
    edit(certified / "certificate.json", lambda c: c.update({key: None}))
    assert complaints(certified)


def test_a_certificate_of_unknown_code_is_only_noted(certified):
    edit(certified / "certificate.json", lambda c: c.update(code=None))
    assert complaints(certified) == []


@pytest.mark.parametrize("arm", ["real_source", "random_source", "no_source"])
def test_an_arm_made_again_has_the_same_bytes(certified, arm):
    for path in certified.rglob("*.safetensors"):
        if path.parent.name == arm:
            path.unlink()
    checks = rerun(certified, arm, ONE_PROCESS)
    assert [(c.name, c.holds, c.detail) for c in checks] == [
        (f"{arm}, seed {seed}, again", True, "the same bytes") for seed in (0, 1)
    ]


def test_an_arm_is_made_again_with_as_many_threads_as_before(certified, monkeypatch):
    """Sums of another number of threads round differently."""
    seen, delta, before = [], Jobs.delta, torch.get_num_threads()
    monkeypatch.setattr(Jobs, "delta", lambda jobs, job: seen.append(torch.get_num_threads()) or delta(jobs, job))
    for seed, threads in ((0, 1), (1, 3)):
        path = certified / "arms" / "no_source" / f"seed-{seed}.json"
        edit(path, lambda record, threads=threads: record.update(threads=threads))
    try:
        torch.set_num_threads(2)
        rerun(certified, "no_source", ONE_PROCESS)
        assert seen == [1, 3]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_an_unknown_arm_is_one_line(certified):
    for arm in ("self_source", "reel_source", ""):
        with pytest.raises(ConfigError, match="this certificate has no such arm") as e:
            rerun(certified, arm, ONE_PROCESS)
        assert "\n" not in str(e.value)


def test_exit_codes(pkt, certified, tmp_path):
    done = pkt("verify", certified, "--device", "cpu", "--rerun", "no_source")
    assert done.code == 0
    assert "the certificate holds" in done.out
    assert done.out.count("the same bytes") == 2
    assert "FAILED" not in done.out
    done = pkt("verify", certified, "--device", "cpu", "--rerun", "nobody")
    assert (done.code, done.err.count("error: ")) == (2, 1)
    assert "this certificate has no such arm" in done.err
    edit(certified / "certificate.json", lambda c: c.update(verdict="transfer"))
    done = pkt("verify", certified, "--device", "cpu")
    assert done.code == 1
    assert re.search(r"1 of \d+ checks failed", done.out)
    assert next(line for line in done.out.splitlines() if "FAILED" in line).startswith("verdict")


@pytest.mark.parametrize("content", [None, "{", "[]", json.dumps({"format": "certificate 0"})])
def test_a_folder_without_a_certificate_is_one_line(pkt, tmp_path, content):
    if content is not None:
        (tmp_path / "certificate.json").write_text(content)
    done = pkt("verify", tmp_path)
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert str(tmp_path / "certificate.json") in done.err
