"""What guessing scores stands beside scores of public tasks too."""

from types import SimpleNamespace

import pytest

from pkt.summary import _scores


@pytest.mark.parametrize(("name", "chance"), [("mmlu", 0.25), ("gsm8k", None)])
def test_chance_of_public_tasks_in_a_run(name: str, chance: float | None) -> None:
    line = {"arm": "target", "seed": 0, "task": name, "tier": "all", "score": 1.0}
    lines = [line | {"id": str(i), "unit": str(i)} for i in range(3)]
    run = SimpleNamespace(task=SimpleNamespace(name=name))
    (row,) = _scores(run, lines)
    assert row.get("chance") == chance
