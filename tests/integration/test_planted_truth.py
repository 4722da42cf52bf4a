"""Methods whose truth is known get the verdict they deserve: the campaign of `benchmarks/planted_truth.py` in small."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from certified_folders import failed, lines, small_recipe

from pkt.certification import Certification
from pkt.errors import ConfigError
from pkt.run import Run

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SMALL = {"task": "nano/gsm8k", "limit": 10, "seeds": 2}
pytestmark = pytest.mark.usefixtures("plain_page")


@pytest.fixture(scope="module")
def planted():
    """The module with the planted methods."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import planted_truth

        yield planted_truth


def deltas(found: dict[str, Any]) -> dict[str, list[str]]:
    """Arm -> hash of the delta of each seed."""
    return {row["arm"]: row["hashes"]["deltas"] for row in found["arms"] if row["reason"] is None}


def means(found: dict[str, Any]) -> dict[str, float]:
    return {row["arm"]: row["mean"] for row in found["comparisons"]}


def test_a_finetuned_source_of_the_same_shape_transfers(planted: ModuleType, tmp_path):
    source = planted.finetuned_target(tmp_path / "finetuned", "nano/gsm8k", 80)
    found = planted.certificate_of("planted_difference", str(source), tmp_path / "out", 0, **SMALL)
    assert found["verdict"] == "transfer"
    assert found["preliminary"]
    assert found["scores"]["source"] == found["arms"][0]["score"] > 0.5
    assert found["gain"]["low"] > 0
    assert set(means(found)) == {"target", "random_source", "shuffled_source", "self_source"}
    assert len(set(found["arms"][0]["seed_scores"])) == 1
    assert failed(tmp_path / "out") == []


def test_a_lineage_transfers_through_the_inverse_of_its_expansion(planted, tmp_path):
    found = planted.certificate_of("planted_expansion", "nano/lineage-easy", tmp_path / "out", 1, **SMALL)
    assert found["verdict"] == "transfer"
    absent = {row["arm"]: row["reason"] for row in found["arms"] if row["reason"]}
    assert absent == {
        "self_source": "the target is no expansion of itself",
        "no_source": "planted_expansion does nothing without a source",
        "random_neurons": "planted_expansion chooses no neurons",
        "wrong_task": "planted_expansion locates nothing",
    }
    assert (found["arms"][0]["lr"], found["arms"][0]["lr_from"], found["arms"][0]["curve"]) == (None, None, [])
    assert (tmp_path / "out" / "arms" / "real_source" / "learning_rate.json").is_file()
    assert not (tmp_path / "out" / "neurons").exists()
    assert failed(tmp_path / "out") == []


def test_buried_rows_raise_the_flag(planted, tmp_path):
    found = planted.certificate_of("planted_harm", "nano/source", tmp_path / "out", 2, **SMALL)
    assert found["harm"] is True
    assert found["verdict"] != "transfer"
    known, text = found["guards"]
    assert (known["name"], known["harmed"]) == ("known", True)
    assert known["mean"] < -0.5
    assert text["mean"] < -0.5


def test_a_method_that_looks_at_no_source_differs_from_no_arm(planted, tmp_path):
    found = planted.certificate_of("planted_deaf", "nano/source", tmp_path / "out", 3, **SMALL)
    assert found["verdict"] != "transfer"
    assert found["gain"]["mean"] == 0
    for row in found["comparisons"]:
        if row["kind"] == "source":
            assert (row["mean"], row["low"], row["p"], row["p_holm"]) == (0, -row["high"], 1, 1)
    made = deltas(found)
    assert len({tuple(hashes) for hashes in made.values()}) == len(made)  # each says in its header whose it is
    outputs = {
        arm: [[(x["id"], x["output"]) for x in of(tmp_path / "out", arm, seed)] for seed in found["seeds"]]
        for arm in made
    }
    assert all(of_arm == outputs["real_source"] for of_arm in outputs.values())


def of(folder: Path, arm: str, seed: int) -> list[dict[str, Any]]:
    everything = lines(folder / "arms" / arm / f"seed-{seed}.jsonl")
    return [line for line in everything if line["task"] == "nano/gsm8k"]


def test_the_null_method_depends_on_every_source_it_is_given(planted, tmp_path):
    """Its arms differ, so that a false transfer would show; that none is more often found is for the long campaign."""
    null = SMALL | {"tier": "skill"}
    found = planted.certificate_of("planted_null", "nano/source", tmp_path / "out", 4, **null)
    assert found["verdict"] != "transfer"
    assert found["items"]["tier"] == "skill"
    scores = {row["arm"]: row["seed_scores"] for row in found["arms"] if row["reason"] is None}
    outputs = {
        tuple(line["output"] for line in of(tmp_path / "out", arm, seed)) for arm in scores for seed in found["seeds"]
    }
    assert len(scores) == 4
    assert len(outputs) > len(scores)


@pytest.mark.parametrize(
    ("method", "arm", "reason"),
    [
        ("planted_deaf", "no_source", "planted_deaf does nothing without a source"),
        ("planted_deaf", "random_neurons", "planted_deaf chooses no neurons"),
        ("planted_deaf", "wrong_task", "planted_deaf locates nothing"),
        ("planted_expansion", "self_source", "the target is no expansion of itself"),
    ],
)
def test_an_arm_that_the_method_lacks_is_refused(planted, tmp_path, method, arm, reason):
    recipe = small_recipe(certificate={"arms": [arm]}).model_copy(
        update={"method": {"name": f"planted_truth:{method}"}}
    )
    with pytest.raises(ConfigError, match=f"certificate.arms: {arm} is not to be had: {reason}"):
        Certification(Run(recipe, tmp_path)).check()
