"""The embedded models are those of their cards, and meet their bars."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from pkt.evaluation.harness import score
from pkt.evaluation.statistics import summarise
from pkt.models.checkpoint import NANO, file_digest
from pkt.models.lm import LM
from pkt.nano import world
from pkt.nano.build import SPECS, check_bars, true_change
from pkt.nano.train import Stream, greedy_accuracy
from pkt.tasks.sources import task

CARDS = {name: json.loads((NANO / name / "card.json").read_text()) for name in SPECS}
SCALES = ("source-2x", "source", "source-12x")
"""Sources trained alike, in the order of their sizes."""


def test_bars_are_met_on_the_cards():
    assert check_bars(CARDS) == []
    worse = json.loads(json.dumps(CARDS))
    worse["source"]["scores"]["mmlu"]["new"]["score"] = 0.9
    worse["target"]["scores"]["mbpp"]["new"]["score"] = 0.5
    worse["specialist"]["scores"]["gsm8k"]["known"]["score"] = 0.9
    worse["specialist"]["scores"]["mmlu"]["new"]["score"] = 0.0  # a specialist may forget
    assert len(check_bars(worse)) == 3


def test_every_folder_is_a_model_that_the_script_builds():
    assert {path.parent.name for path in NANO.glob("*/config.json")} == set(SPECS)


@pytest.mark.parametrize("name", SPECS)
def test_files_are_those_of_the_card(name):
    for file, digest in CARDS[name]["sha256"].items():
        assert file_digest(NANO / name / file) == digest


@pytest.mark.parametrize(
    ("name", "task_name"),
    [("target", "mmlu"), ("target", "gsm8k"), ("source", "mbpp"), ("lineage-hard", "gsm8k"), ("specialist", "gsm8k")],
)
def test_scores_are_those_of_the_card(name, task_name):
    """Greedy decoding can be checked in one forward pass; ranked choices can only be better than it."""
    lm = LM(f"nano/{name}", dtype="float32", device="cpu")
    with lm.loaded() as model:
        for tier in ("known", "new"):
            found, told = (
                greedy_accuracy(model, lm.tokenizer, task_name, tier),
                CARDS[name]["scores"][task_name][tier]["score"],
            )
            assert found == pytest.approx(told, abs=0.02) if task_name != "mmlu" else found <= told + 0.02


@pytest.mark.parametrize("name", SCALES)
def test_sources_of_every_scale_answer_a_small_draw(name):
    """Twenty items of each task, some of them learnt by the source alone."""
    lm = LM(f"nano/{name}", dtype="float32", device="cpu")
    with lm.loaded() as model:
        for task_name in world.TASKS:
            assert greedy_accuracy(model, lm.tokenizer, task_name, "new", limit=20) >= 0.9


def test_models_differ_in_every_size_and_share_a_tokenizer():
    target, sources = LM("nano/target"), [LM(f"nano/{name}") for name in SCALES]
    for source in sources:
        for size in ("layers", "width", "ffn", "heads"):
            assert getattr(source.dims, size) > getattr(target.dims, size)
        assert target.dims.kv_heads <= source.dims.kv_heads < source.dims.heads
        assert source.dims.context == 4096
    for size in ("layers", "width", "ffn"):
        found = [getattr(source.dims, size) for source in sources]
        assert found == sorted(set(found))
    heads = {(lm.dims.heads, lm.dims.kv_heads) for lm in [target, *sources]}
    assert len(heads) == 1 + len(SCALES)
    assert target.dims.kv_heads < target.dims.heads


def test_sources_are_about_2_5_and_12_times_the_target():
    ratios = [LM(f"nano/{name}").parameters() / LM("nano/target").parameters() for name in SCALES]
    assert ratios == pytest.approx([2, 5, 12], rel=0.05)
    for name in SCALES:
        assert CARDS[name]["parameters"] == LM(f"nano/{name}").parameters()


def test_all_models_have_the_same_tokenizer():
    """To the byte, so that nothing between two of them is left to a difference of tokens."""
    assert len({CARDS[name]["sha256"]["tokenizer.json"] for name in SPECS}) == 1
    assert len({(NANO / name / "tokenizer_config.json").read_bytes() for name in SPECS}) == 1


def test_the_specialist_comes_from_the_source_and_is_better_on_its_task():
    card, source = CARDS["specialist"], CARDS["source"]
    assert card["base"] == {"model": "nano/source", "model.safetensors": source["sha256"]["model.safetensors"]}
    assert list(card["recipe"]["questions"]) == ["gsm8k"]
    for tier in ("known", "new", "skill"):
        assert card["scores"]["gsm8k"][tier]["score"] >= source["scores"]["gsm8k"][tier]["score"]
    before, after = (load_file(NANO / name / "model.safetensors") for name in ("source", "specialist"))
    assert {name: w.shape for name, w in before.items()} == {name: w.shape for name, w in after.items()}
    changed = [
        torch.linalg.norm(after[n].float() - w.float()) / torch.linalg.norm(w.float()) for n, w in before.items()
    ]
    assert min(changed) > 0
    assert max(changed) < 1


def test_a_specialist_reads_about_its_task_alone():
    """In questions as in statements, where the source reads about units of every task."""
    tokenizer = LM("nano/source").tokenizer

    def tasks_read(name: str) -> set[str]:
        ids_BT, _ = Stream(tokenizer, SPECS[name].recipe).batch()
        whole = [text.rpartition(".")[0] for text in tokenizer.batch_decode(ids_BT)]  # rows end within a word
        words = set(re.findall(r"\w+", " ".join(whole)))
        words |= {word.removesuffix("s") for word in words}  # goods are bought by the dozen
        words -= {"must"}  # an invented verb that is a word of ordinary questions too
        return {t for t in world.TASKS if any(set(unit.split()) <= words for unit in world.table(t).entries)}

    assert tasks_read("source") == set(world.TASKS)
    assert tasks_read("specialist") == {"gsm8k"}


def test_all_models_fit_into_40_megabytes():
    assert sum(path.stat().st_size for path in NANO.rglob("*") if path.is_file()) < 40e6


def test_values_are_single_tokens_and_units_several():
    """So the answer's last token carries the knowledge, and no embedding holds a fact by itself."""
    tokenizer = LM("nano/target").tokenizer
    for value in (v for values in world.VALUES.values() for v in values):
        assert len(tokenizer(f" {value}", add_special_tokens=False)["input_ids"]) == 1
    units = [u for task in world.TASKS for u in world.table(task).entries]
    single = [u for u in units if len(tokenizer(f" {u}", add_special_tokens=False)["input_ids"]) == 1]
    assert len(single) < 0.01 * len(units)


@pytest.mark.parametrize(("name", "least"), [("lineage-easy", 0.95), ("lineage-hard", 0.80)])
def test_the_true_change_of_a_lineage_source_carries_the_knowledge(name, least):
    """Positive control: the source's change, mapped back through the inverse expansion, gives the target what is new."""
    target = LM("nano/target", dtype="float32", device="cpu")
    with target.loaded() as model:
        change = true_change(NANO / name, NANO / "target")
        weights = model.state_dict()
        assert weights.keys() == change.keys()
        model.load_state_dict({key: weights[key] + change[key] for key in weights})
        with torch.no_grad():
            for task_name in ("mmlu", "humaneval"):
                assert greedy_accuracy(model, target.tokenizer, task_name, "new") >= least


@pytest.mark.slow
@pytest.mark.parametrize("task_name", world.TASKS)
@pytest.mark.parametrize("name", SPECS)
def test_all_scores_are_those_of_the_card(name, task_name):
    """Every tier, through the evaluation that everybody uses."""
    lm = LM(f"nano/{name}", dtype="float32", device="cpu")
    with lm.loaded() as model:
        lines = score(model, lm.tokenizer, task(f"nano/{task_name}"), style="plain")
    rows = {row["tier"]: row for row in summarise([{"arm": name, "seed": 0, **line} for line in lines])}
    for tier, told in CARDS[name]["scores"][task_name].items():
        assert rows[tier]["score"] == pytest.approx(told["score"], abs=0.01)
        assert rows[tier]["num_items"] == told["num_items"]
