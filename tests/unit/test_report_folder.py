"""What the report takes from a folder beside its summary: whether items were drawn, and what writes the summary anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import report_data

from pkt.errors import DataError
from pkt.report.html import render


def page_of(folder: Path, recipe: str | None, summary: dict[str, Any]) -> str:
    """The words of a page; None means no recipe."""
    report_data.write(folder, summary)
    path = folder / "recipe.yaml"
    path.unlink() if recipe is None else path.write_text(recipe)
    return report_data.words(render(folder))


@pytest.mark.parametrize(
    ("recipe", "is_whole"),
    [
        ("name: a\nevaluate:\n  limit: null\n", True),
        ("name: a\n", True),
        ("name: a\nevaluate:\n  limit: 840\n", False),
        ("name: a\nevaluate: none\n", False),
        ("a: b: c\n", False),
        ("? {a: b}\n: c\n", False),
        ("a: 2026-13-45\n", False),
        ("", False),
        (None, False),
    ],
)
def test_a_subsample_is_not_called_the_whole_test_split(tmp_path: Path, recipe: str | None, is_whole: bool) -> None:
    """Nor are scores of which nobody can tell."""
    summary = report_data.nano()
    tiers = page_of(tmp_path, recipe, summary)
    assert ("the whole test split" in tiers) is is_whole
    assert ("the items of the test split that were scored" in tiers) is not is_whole
    summary["scores"] = [row for row in summary["scores"] if row["tier"] == "all"]
    text = page_of(tmp_path, recipe, summary)
    split = "the whole test split" if is_whole else "840 items of the test split"
    assert f"On {split} the score went from 0.430 ± 0.017 to 0.460 ± 0.017" in text
    assert f"On {split} chance is 0.090 and the source scores 1.000." in text


@pytest.mark.parametrize("name", ["summary.json", "env.json"])
@pytest.mark.parametrize("has_delta", [True, False])
def test_what_is_damaged_is_written_anew_by_the_command_that_can(tmp_path: Path, name: str, has_delta: bool) -> None:
    """A folder of `pkt certify` alone has no delta that `pkt evaluate` could score."""
    report_data.write(tmp_path, report_data.nano())
    (tmp_path / name).write_text("{")
    if has_delta:
        (tmp_path / "delta.safetensors").touch()
    with pytest.raises(DataError, match=rf"{name}: not valid JSON") as e:
        render(tmp_path)
    command = f"evaluate {tmp_path}" if has_delta else f"certify RECIPE --out {tmp_path}"
    assert str(e.value).endswith(f"write it anew with `pkt {command}`")


def test_a_summary_of_another_form_is_written_anew_likewise(tmp_path: Path) -> None:
    report_data.write(tmp_path, report_data.certified_only())
    (tmp_path / "summary.json").write_text(json.dumps({"name": "a"}))
    with pytest.raises(DataError, match="task: Field required; write it anew with `pkt certify RECIPE --out"):
        render(tmp_path)
