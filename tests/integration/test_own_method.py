"""A method of a user's own, from a file outside the package: the one that docs/certificate.md shows."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from certified_folders import ONE_PROCESS, small_recipe

from pkt.errors import ConfigError
from pkt.evidence import certify
from pkt.run import Run
from pkt.verify import rerun, verify

DOCS = Path(__file__).parents[2] / "docs" / "certificate.md"
pytestmark = pytest.mark.usefixtures("plain_page")


@pytest.fixture
def own(tmp_path, monkeypatch) -> Path:
    (text,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), flags=re.DOTALL)
    path = tmp_path / "crop_method.py"
    path.write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "crop_method", raising=False)
    return path


def recipe(name: str):
    made = small_recipe(certificate={"arms": ["random_source", "self_source"]})
    return made.model_copy(update={"method": {"name": name}})


def test_it_is_certified_and_verified(own, tmp_path):
    found = certify(recipe("crop_method:crop"), tmp_path / "out", ONE_PROCESS)
    reasons = {row["arm"]: row["reason"] for row in found["arms"] if row["reason"]}
    assert reasons["no_source"] == "crop does nothing without a source"
    assert {row["lr"] for row in found["arms"]} == {None}
    checks = [*verify(tmp_path / "out"), *rerun(tmp_path / "out", "random_source")]
    assert [check.name for check in checks if check.holds is False] == []


def test_a_changed_method_is_run_again(own, tmp_path, monkeypatch):
    def inputs():
        return Run(recipe("crop_method:crop"), tmp_path / "out", ONE_PROCESS).inputs()

    first = inputs()
    own.write_text(own.read_text() + "\n# changed\n")
    assert inputs() == first  # what is loaded is what ran
    monkeypatch.delitem(sys.modules, "crop_method")
    assert inputs() != first


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no_such_module:crop", "No module named 'no_such_module'; put the folder of its file on PYTHONPATH"),
        ("crop_method:cropp", "crop_method has no Method of that name"),
        ("json:dumps", "json has no Method of that name"),
        (":crop", "Empty module name"),
    ],
)
def test_what_is_no_method(own, tmp_path, name, says):
    with pytest.raises(ConfigError, match=says):
        Run(recipe(name), tmp_path / "out", ONE_PROCESS)
