"""Certificates of the methods that fine-tune: what is held in memory, what is shared, and what they say."""

from __future__ import annotations

import pytest
from certified_folders import CONTENT, ONE_PROCESS, read

from pkt.comparison_entry import entry
from pkt.config import Recipe
from pkt.evidence import certify
from pkt.models.lm import LM
from pkt.verify import rerun, verify

TRAINING = {"batch_size": 8, "micro_batch": 8, "epochs": 1, "lr": 1e-3}
METHODS = {
    "seeking": {"name": "seeking", "rank": 4, **TRAINING},
    "seqkd": {"name": "seqkd", "unlabelled": 4, "max_new_tokens": 8, **TRAINING},
}


@pytest.fixture
def beside(monkeypatch) -> list[tuple[str, str]]:
    """Pairs of a model that was loaded and one that was held at that time."""
    handles: list[LM] = []
    seen: list[tuple[str, str]] = []
    load = LM._load

    def watched(lm: LM, dtype: str | None = None):
        seen.extend((lm.name, other.name) for other in handles if other._model is not None)
        if lm not in handles:
            handles.append(lm)
        return load(lm, dtype)

    monkeypatch.setattr(LM, "_load", watched)
    return seen


@pytest.mark.parametrize("name", METHODS)
def test_a_certificate_holds_one_model_and_shares_what_it_can(tmp_path, plain_page, beside, name):
    content = CONTENT | {
        "method": METHODS[name],
        "task": {"name": "nano/gsm8k", "prompt_style": "plain", "labels": 12},
        "evaluate": {"limit": 2},
        "certificate": {
            "seeds": 2,
            "learning_rates": "recipe",
            "arms": ["shuffled_source", "self_source", "no_source"],
        },
    }
    found = certify(Recipe.model_validate(content), tmp_path / "c", ONE_PROCESS)
    assert beside == []
    assert all(check.holds is not False for check in verify(tmp_path / "c", ONE_PROCESS))
    assert all(check.holds for check in rerun(tmp_path / "c", "shuffled_source", ONE_PROCESS))
    kept = {path.name for path in (tmp_path / "c" / "neurons").iterdir() if ".cost." not in path.name}
    assert (
        set(found["hashes"]["location"]) == kept
    )  # what the target said, or where it was located, as its own source too
    rows = {row["arm"]: row for row in found["arms"]}
    assert rows["no_source"]["labels"] == {"seeking": 11, "seqkd": 12}[name]
    stage = read(tmp_path / "c" / "stages.json")["locate" if name == "seeking" else "prepare"]
    assert stage["flop"] > 0
    costs = entry(tmp_path / "c").costs
    assert costs.flop == pytest.approx(stage["flop"] + rows["real_source"]["flop"])
    assert any(file.startswith("blocks-" if name == "seeking" else "answers-") for file in found["hashes"]["location"])
