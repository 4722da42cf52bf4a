"""Harm in the words of a certificate: what was tested, what fell, and what nobody can tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import report_data
from report_data import words

from pkt.report.html import render
from pkt.report.verdict import harm_flag, stamp, verdict_lines

UNTESTED: dict[str, Any] = {"margin": None, "p": None, "p_holm": None, "harmed": None}


@pytest.fixture
def found() -> dict[str, Any]:
    return report_data.certificate()


@pytest.mark.parametrize(
    ("harm", "badge", "sentence"),
    [
        (True, ">harm</span>", "Worse by more than the margin: known by 0.200."),
        (
            False,
            ">harm not excluded</span>",
            "A fall by more than the margin is neither certain nor excluded: known −0.200 [−0.250, −0.150].",
        ),
        (None, ">harm: not asked</span>", "No guard was tested"),
    ],
)
def test_harm(tmp_path: Path, found: dict[str, Any], harm: bool | None, badge: str, sentence: str) -> None:
    found["harm"] = harm
    found["guards"][0].update(mean=-0.2, low=-0.25, high=-0.15, harmed=harm is True)
    if harm is None:
        found["guards"] = []
    folder = report_data.write(tmp_path, report_data.certified_only())
    page = render(report_data.certify(folder, found))
    assert badge in page
    assert sentence in words(page)
    assert ('class="badge harm"' in page) == (harm is True)
    assert ("known (harm)" in page) == (harm is True)
    assert ("Did it do harm?" in page) == (harm is not None)


def test_a_guard_that_fell_untested_does_not_go_as_no_harm(found: dict[str, Any]) -> None:
    """Without a lead of the source there is no margin: the guard text alone was tested, and held."""
    found["guards"][0].update(UNTESTED, mean=-0.9, low=-0.95, high=-0.85)
    assert harm_flag(found) == stamp(found, found)["harm"] == "harm not excluded"
    assert "harm not excluded: 1 guard within its margin. Not tested, for want of a margin: known." in verdict_lines(
        found
    )


def test_guards_of_which_none_could_be_tested_were_asked_for(found: dict[str, Any]) -> None:
    found.update(harm=None, guards=found["guards"][:1])
    found["guards"][0].update(UNTESTED)
    assert harm_flag(found) == "harm not excluded"
    said = stamp(found, found)["harmed"]
    assert said.startswith("No guard was tested, so nobody can tell")
    assert said.endswith("Not tested, for want of a margin: known.")


def test_what_was_not_tested_is_named_beside_what_fell_or_may_have(found: dict[str, Any]) -> None:
    text = found["guards"][1]
    found["guards"][0].update(UNTESTED)
    text.update(mean=-0.03, low=-0.05, high=-0.01)
    assert harm_flag(found) == "harm not excluded"
    assert stamp(found, found)["harmed"].endswith("[−0.050, −0.010]. Not tested, for want of a margin: known.")
    found["harm"] = text["harmed"] = True
    assert harm_flag(found) == "harm"
    assert stamp(found, found)["harmed"].endswith("perplexity by 0.030. Not tested, for want of a margin: known.")
