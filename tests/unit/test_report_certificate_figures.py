"""The certificate's figures, the table of arms, and the figure of source dependence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import report_data
from report_data import section, words

from pkt.report import certificate_plots
from pkt.report.html import render
from pkt.report.numbers import signed


@pytest.fixture
def found() -> dict[str, Any]:
    return report_data.certificate()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in which nothing but `pkt certify` ran."""
    return report_data.write(tmp_path, report_data.certified_only())


def page_of(folder: Path, certificate: dict[str, Any]) -> str:
    return render(report_data.certify(folder, certificate))


def test_forest_has_a_row_per_comparison_target_first(folder: Path, found: dict[str, Any]) -> None:
    page = page_of(folder, found)
    forest = section(page, "Better than what?")
    names = ["Does it help?", ">target<", "Is it the source?", ">random_source<", ">shuffled_source<",
             "Does location matter?", ">random_neurons<"]  # fmt: skip
    at = [forest.index(name) for name in names]
    kinds = [at[i] for i in (0, 2, 5)]
    assert kinds == sorted(kinds)
    assert "+0.031 [+0.008, +0.054]" in forest
    assert "within the margin of 0.093" in forest
    assert "better than that arm" in forest
    assert found["rule"] in words(page)
    assert "a bar would miss zero in 5 % of all cases" in words(page).replace("\u00a0", " ")


def test_no_margin_no_band(folder: Path, found: dict[str, Any]) -> None:
    assert "grey band" in page_of(folder, found)
    found["margin"] = None
    page = page_of(folder, found)
    assert "within the margin of" not in section(page, "Better than what?")
    assert "grey band" not in page
    assert "no margin, the source leads" in words(page)


@pytest.mark.parametrize("value", [0.0, 0.25, -0.25])
@pytest.mark.parametrize("margin", [None, 0.0, 0.1])
def test_intervals_of_no_width(folder: Path, found: dict[str, Any], value: float, margin: float | None) -> None:
    found["margin"] = margin
    for row in (*found["comparisons"], *found["guards"]):
        row.update(mean=value, low=value, high=value)
    page = page_of(folder, found)
    assert f"{signed(value)} [{signed(value)}, {signed(value)}]" in section(page, "Better than what?")
    assert not re.search(r"\bnan\b", page)


def test_every_interval_and_the_margin_are_inside_the_axis(found: dict[str, Any]) -> None:
    low, high = certificate_plots._limits(found["comparisons"], 0.5)
    assert (low < -0.5, high > 0.5) == (True, True)
    low, high = certificate_plots._limits([{"low": 0.2, "high": 0.3}], None)
    assert (low < 0, high > 0.3) == (True, True)


def test_guards_are_scaled_by_their_own_margin(folder: Path, found: dict[str, Any]) -> None:
    found["guards"].append(found["guards"][0] | {"name": "wikitext", "margin": None})
    rows = certificate_plots.scaled_guards(found)
    assert [row["mean"] for row in rows] == pytest.approx([-0.03 / 0.093, -0.5])
    page = page_of(folder, found)
    assert "Not drawn, for want of a margin: wikitext." in words(page)
    assert "−0.010 [−0.011, −0.009] nats" in section(page, "Did it do harm?")
    assert "wikitext" in page.split("<th>guard</th>")[1]


def test_no_guard_with_a_margin_no_figure(folder: Path, found: dict[str, Any]) -> None:
    found["guards"] = [row | {"margin": None} for row in found["guards"]]
    page = page_of(folder, found)
    assert "Did it do harm?" not in page
    assert "<th>guard</th>" in page


def test_arms_that_do_not_apply_are_listed_with_their_reason(folder: Path, found: dict[str, Any]) -> None:
    page = page_of(folder, found)
    rows = re.findall(r"<tr><th>([^<]*)</th>.*?</tr>", page.split("<th>what it is</th>")[1], re.DOTALL)
    assert rows[:5] == [arm["arm"] for arm in found["arms"]]
    assert "does not apply: direct trains nothing" in page
    assert "no_source" not in section(page, "Score of every arm")
    assert "230,400" in page
    assert ">180.4<" in page


def test_learning_rates(folder: Path, found: dict[str, Any]) -> None:
    found["arms"][1].update(at_edge=True)
    text = words(page_of(folder, found))
    assert "A cross at the top is a run whose training diverged: real_source at 0.1; random_source at 0.1;" in text
    assert "a better rate may lie beyond: random_source." in text
    for arm in found["arms"]:
        arm.update(curve=[point for point in arm["curve"] if point["loss"] is not None], at_edge=False)
    text = words(page_of(folder, found))
    assert "Choice of the learning rate" in text
    assert "diverged" not in text
    assert "may lie beyond" not in text


def test_a_rate_that_was_given_is_said_to_be(folder: Path, found: dict[str, Any]) -> None:
    assert "Every arm gets its own search" in words(page_of(folder, found))
    found["arms"][0].update(curve=[], lr_from="preset")
    text = words(page_of(folder, found))
    assert "The rate of real_source was given and not searched." in text
    assert "Every arm gets its own search" not in text


def test_every_diverged_point_is_a_cross(found: dict[str, Any]) -> None:
    def crosses() -> int:
        return len(re.findall(r"<use [^>]*var\(--heat", certificate_plots.learning_rates(found)))

    assert crosses() == 4
    for point in found["arms"][0]["curve"][-3:]:
        point["loss"] = None
    assert crosses() == 6
    for arm in found["arms"]:
        arm["curve"] = [point | {"loss": None} for point in arm["curve"]]
    assert certificate_plots.learning_rates(found).count("<svg") == 1


def test_losses_far_apart_get_a_logarithmic_axis(found: dict[str, Any]) -> None:
    found["arms"][0]["curve"][3]["loss"] = 80.0
    assert re.search(r">50<", certificate_plots.learning_rates(found))


def test_no_curve_of_two_points_no_figure(folder: Path, found: dict[str, Any]) -> None:
    for arm in found["arms"]:
        arm["curve"] = arm["curve"][:1]
    assert "Choice of the learning rate" not in page_of(folder, found)


def test_scores_near_each_other_are_shown_closer(found: dict[str, Any]) -> None:
    assert "the same, closer" in certificate_plots.arm_scores(found)
    found["scores"]["source"] = 0.2
    svg = certificate_plots.arm_scores(found)
    assert "the same, closer" not in svg
    assert "source (0.200)" in svg
    found["scores"]["source"] = None
    assert "source (" not in certificate_plots.arm_scores(found)


def test_source_dependence(tmp_path: Path) -> None:
    summary = report_data.nano()
    title = "Does the change depend on the source?"
    assert title not in render(report_data.write(tmp_path, summary))
    summary["history"][0].update(source_cosine=None, noise_norm_ratio=None)
    assert title not in render(report_data.write(tmp_path, summary))
    for step in summary["history"][::10]:
        step.update(source_cosine=0.99, noise_norm_ratio=1.4)
    page = render(report_data.write(tmp_path, summary))
    assert "cosine with the noise-fed change" in section(page, title)
    assert "norm: noise-fed over real" in section(page, title)
    for step in summary["history"]:
        step.pop("noise_norm_ratio", None)
    assert "noise-fed over real<" not in section(render(report_data.write(tmp_path, summary)), title)
