"""What `pkt plan` says that a run takes, against the operations that were counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from certified_folders import ONE_PROCESS, small_recipe

from pkt import plan as plans
from pkt.recipe_files import load_recipe
from pkt.run import Run


@pytest.fixture
def planned(monkeypatch, tmp_path) -> Callable[[Any], dict[str, dict[str, float]]]:
    """`planned(recipe)`: stage -> operations and bytes, not rounded."""
    monkeypatch.setattr(plans, "measured_flops", lambda device: 1e12)
    monkeypatch.setattr(plans, "_row", lambda stage, flop, memory, speed: {"stage": stage.partition(",")[0], "flop": flop, "memory": memory})  # fmt: skip

    def rows(recipe: Any) -> dict[str, dict[str, float]]:
        return {row["stage"]: row for row in plans.plan(Run(recipe, tmp_path / "plan", ONE_PROCESS)).costs}

    return rows


def counted(recipe: Any, folder: Path, stage: str) -> float:
    """Operations that a stage, `locate` or `align`, really took."""
    run = Run(recipe, folder, ONE_PROCESS)
    run.start()
    run.locate()
    if stage == "align":
        run.align()
    return float(run.stages.records()[stage]["flop"])


@pytest.mark.parametrize(("transfer", "injection"), [(1.0, 0.1), (0.1, 1.0)])
def test_what_is_trained_is_planned_and_not_what_is_injected(planned, tmp_path, transfer, injection):
    recipe = small_recipe(method={"transfer_rate": transfer, "injection_rate": injection, "steps": 8})
    said = planned(recipe)["align"]
    assert said["flop"] == pytest.approx(counted(recipe, tmp_path / "run", "align"), rel=0.15)
    whole, part = (planned(small_recipe(method={"transfer_rate": rate}))["align"] for rate in (1.0, 0.1))
    assert part["memory"] < whole["memory"]
    assert said["memory"] == pytest.approx((whole if transfer == 1.0 else part)["memory"])


@pytest.mark.parametrize("layers_at_once", [0, 1, 4])
def test_sensitivities_of_some_layers_at_once_take_more_passes_and_less_memory(planned, tmp_path, layers_at_once):
    def recipe(layers_at_once: int) -> Any:
        return load_recipe("nano_seeking", [f"method.layers_at_once={layers_at_once}"])

    said, whole = (planned(recipe(n))["locate in the source"] for n in (layers_at_once, 0))
    assert said["flop"] == pytest.approx(counted(recipe(layers_at_once), tmp_path / "run", "locate"), rel=0.15)
    source = Run(recipe(0), tmp_path / "other", ONE_PROCESS).source
    held = (layers_at_once or source.dims.layers) / source.dims.layers
    assert whole["memory"] - said["memory"] == pytest.approx(4.0 * source.parameters() * (1 - held))


@pytest.mark.parametrize("name", ["nano_sft", "nano_lora"])
def test_recomputed_activations_take_less_memory(planned, name):
    plain, recomputed = (
        planned(load_recipe(name, [f"method.gradient_checkpointing={wanted}"]))["fine-tune"]
        for wanted in ("false", "true")
    )
    assert recomputed["memory"] < plain["memory"]


def test_items_are_those_that_are_drawn(planned):
    """A tier with fewer than the limit has them all."""
    few, all_ = (planned(small_recipe(evaluate={"limit": limit}))["evaluate target"]["flop"] for limit in (150, None))
    assert few / all_ == pytest.approx(630 / 840, rel=0.01)
