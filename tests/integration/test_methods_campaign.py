"""The campaign of `benchmarks/methods.py` in small."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from certified_folders import CONTENT, read, times

pytestmark = pytest.mark.usefixtures("plain_page")


@pytest.fixture(scope="module")
def methods():
    """The benchmark's module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
        import methods

        yield methods


@pytest.fixture
def recipe(tmp_path):
    """A recipe file by its name, with sections changed."""

    def write(name: str, **changes: Any) -> str:
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in CONTENT.items() if k != "name"} | changes), encoding="utf-8")
        return str(path)

    return write


def planned(methods: ModuleType, *arguments: str) -> list[str]:
    args = methods.arguments(["--out", "OUT", *arguments])
    return [str(piece.folder.relative_to("OUT")) for piece in methods.pieces(args)]


def test_methods_without_a_source_run_once(methods, recipe, capsys):
    one, other = recipe("one"), recipe("other", method={"name": "sft"})
    found = planned(methods, "--recipes", one, other, "--tasks", "mmlu", "--sources", "source", "lineage-easy")
    assert found == ["one/mmlu/source", "one/mmlu/lineage-easy", "other/mmlu/source"]
    assert "other/mmlu/lineage-easy: left out, for sft reads no source: as with source" in capsys.readouterr().err


def test_budgets_are_those_that_the_splits_hold(methods, recipe, capsys):
    given = methods.arguments(
        ["--out", "OUT", "--frontier", "--recipes", recipe("one"), recipe("two", method={"name": "sft"})]
    )
    found = [
        (piece.folder.name, piece.recipe.task.labels, piece.recipe.certificate.arms) for piece in methods.pieces(given)
    ]
    laten = [(str(n), n, []) for n in (16, 32, 64)]
    assert found == [*laten, ("all", None, []), *laten, ("128", 128, []), ("all", None, [])]
    assert "128 labels left out, for the method's splits hold 100" in capsys.readouterr().err
    assert given.seeds == 3


def test_every_shipped_recipe_of_the_campaign_is_found(methods):
    assert "nano_tuned" in methods.shipped()
    assert all(name.startswith("nano_") for name in methods.shipped())
    assert len(planned(methods, "--recipes", "nano_tuned")) == 12


def test_a_certificate_that_fails_stands_in_the_table_and_the_rest_goes_on(methods, recipe, tmp_path, capsys):
    bad = recipe("bad", certificate={"tier": "nowhere"})
    good = recipe("good", certificate={"learning_rates": "recipe", "arms": ["random_source"]}, evaluate={"limit": 2})
    out = tmp_path / "out"
    given = ["--out", str(out), "--recipes", bad, good, "--tasks", "gsm8k", "--sources", "source", "--seeds", "2", "--workers", "1",
             "--device", "cpu"]  # fmt: skip
    assert methods.main(given) == 1
    runs = {run["run"]: run for run in read(out / "comparison.json")["runs"]}
    assert runs["bad"]["state"].startswith("failed: certificate.tier: nano/gsm8k has no tier 'nowhere'; it has known")
    assert (runs["good"]["state"], runs["good"]["verdict"]) == ("certified", "undecided")
    shown = capsys.readouterr().out
    assert "failed: certificate.tier" in " ".join(shown.split())
    assert (out / "comparison.html").is_file()
    before = times(out / "good" / "gsm8k" / "source")
    assert methods.main(given) == 1
    assert times(out / "good" / "gsm8k" / "source") == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "0"], "--labels 0: expected a number above 0, or `all`"),
        (["--tasks", "nope"], "invalid choice: 'nope'"),
    ],
)
def test_wrong_arguments(methods, capsys, arguments, message):
    with pytest.raises(SystemExit):
        methods.arguments(["--out", "OUT", *arguments])
    assert message in capsys.readouterr().err


def test_a_recipe_that_is_not_there_stops_before_any_work(methods, tmp_path, capsys):
    assert methods.main(["--out", str(tmp_path / "out"), "--recipes", "nano_tuneb"]) == 2
    assert "error: no recipe 'nano_tuneb'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
