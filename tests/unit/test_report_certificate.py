"""The certificate in the report and on the terminal: words, figures and tables that follow from `certificate.json`."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import report_data
from rich.console import Console

from pkt.errors import DataError
from pkt.report import certificate_plots
from pkt.report.certificate import read_certificate
from pkt.report.html import render
from pkt.report.numbers import interval, p_value, signed
from pkt.report.verdict import certificate_table, stamp, verdict_line

HOSTILE = """<script>alert("1")</script>'"&<img src=x onerror=y> $\\frac{ {{ 7*7 }} --> ]]> 名前"""
Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def found() -> dict[str, Any]:
    return report_data.certificate()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with all its parts."""
    return report_data.write(tmp_path, report_data.nano())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in which nothing but `pkt certify` ran: quicker to draw."""
    return report_data.write(tmp_path, report_data.certified_only())


def page_of(folder: Path, certificate: dict[str, Any]) -> str:
    return render(report_data.certify(folder, certificate))


def words(page: str) -> str:
    """The page without figures, tags and line breaks."""
    bare = re.sub(r"<style>.*?</style>|<svg.*?</svg>", "", page, flags=re.DOTALL)
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", bare)))


def section(page: str, title: str) -> str:
    """From one h3 to the next heading."""
    return page.split(f"<h3>{title}</h3>")[1].split("<h3>")[0].split("<h2>")[0]


def test_without_a_certificate_there_is_no_section(run: Path) -> None:
    page = render(run)
    assert "The certificate" not in page
    assert "certificate.json" not in page
    assert "no certificate of transfer" in page
    assert read_certificate(run) is None


def test_the_box_comes_first_and_no_sentence_denies_it(run: Path, found: dict[str, Any]) -> None:
    page = page_of(run, found)
    at = [
        page.index(part) for part in ('<section class="stamp', 'class="headline', "<h2>The certificate", "<h2>Scores")
    ]
    assert at == sorted(at)
    assert "no certificate" not in page
    assert "Without control arms" not in page
    assert "for the verdict above to say" in page


@pytest.mark.parametrize(
    ("verdict", "title", "meaning"),
    [
        ("transfer", "Verdict: transfer", "by more than with every control arm"),
        ("tuning", "Verdict: tuning, not transfer", "training alone explains the gain"),
        ("no_effect", "Verdict: no effect", "smaller than the margin"),
        ("undecided", "Verdict: undecided", "all unmet so far"),
    ],
)
def test_verdicts(folder: Path, found: dict[str, Any], verdict: str, title: str, meaning: str) -> None:
    found["verdict"] = verdict
    page = page_of(folder, found)
    text = words(page)
    assert f"{title} " in text
    assert meaning in text
    assert f'class="stamp {verdict}"' in page
    assert found["reason"] in text
    assert "reliminary" not in text
    assert verdict_line(found) == f"{title.removeprefix('Verdict: ')}; no harm seen: {found['reason']}"


def test_tuning_of_a_method_that_reads_no_source(found: dict[str, Any]) -> None:
    assert "at least one control arm" in stamp(found, found)["meaning"]
    found["comparisons"] = found["comparisons"][:1]
    assert stamp(found, found)["meaning"].startswith("The target improves, but the method reads no source")


def test_preliminary(folder: Path, found: dict[str, Any]) -> None:
    found.update(preliminary=True, seeds=[0, 1, 2])
    text = words(page_of(folder, found))
    assert "Verdict: tuning, not transfer preliminary" in text
    assert "Preliminary: a verdict takes at least 5 seeds, this one rests on 3 seeds." in text
    assert verdict_line(found).startswith("tuning, not transfer (preliminary); ")


@pytest.mark.parametrize(
    ("harm", "badge", "sentence"),
    [
        (True, ">harm</span>", "Worse by more than the margin: known by 0.200."),
        (False, ">no harm seen</span>", "Of 2 guards none fell by more than its margin beyond doubt."),
        (None, ">harm: not asked</span>", "No guard was scored"),
    ],
)
def test_harm(folder: Path, found: dict[str, Any], harm: bool | None, badge: str, sentence: str) -> None:
    found["harm"] = harm
    found["guards"][0].update(mean=-0.2, low=-0.25, high=-0.15, harmed=harm is True)
    if harm is None:
        found["guards"] = []
    page = page_of(folder, found)
    assert badge in page
    assert sentence in words(page)
    assert ('class="badge harm"' in page) == (harm is True)
    assert ("known (harm)" in page) == (harm is True)
    assert ("Did it do harm?" in page) == (harm is not None)


@pytest.mark.parametrize(
    ("needed", "says"),
    [
        ({"seeds": 9, "units": 1240}, "9 seeds (now 5) or 1,240 units (now 100) would settle it."),
        ({"seeds": None, "units": 240}, "stayed as they are, 240 units (now 100) would settle it."),
        ({"seeds": None, "units": None}, "neither more seeds nor more units alone would settle it."),
        (None, ""),
    ],
)
def test_undecided_says_what_is_needed(found: dict[str, Any], needed: Any, says: str) -> None:
    found.update(verdict="undecided", needed=needed)
    said = stamp(found, found)["needed"]
    assert said.endswith(says)
    assert bool(said) == bool(says)


def test_gain_location_and_basis(folder: Path, found: dict[str, Any]) -> None:
    text = words(page_of(folder, found))
    assert "gain due to the source−0.004 [−0.020, +0.012], measured against self_source" in text
    assert "Location did not matter. Random neurons did as well." in text
    assert "300 items of 100 units (tier new), 5 seeds (0, 1, 2, 3, 4), margin 0.093" in text
    found.update(gain=None, location=None, lead=None)
    text = words(page_of(folder, found))
    assert "gain due to the source" not in text
    assert "Location" not in text
    assert "None" not in text


def test_a_certificate_of_another_run_is_told(folder: Path, found: dict[str, Any]) -> None:
    assert "not about the run below" not in page_of(folder, found)
    found["method"] = "seeking"
    found["target"]["weights"] = "99" * 32
    text = words(page_of(folder, found))
    assert (
        "they differ in method (seeking, not laten), the target's weights (9999999999999999, not 8686868686868686)."
        in text
    )


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


def test_a_folder_that_holds_only_a_certificate(folder: Path, found: dict[str, Any]) -> None:
    page = page_of(folder, found)
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert headings == ["The certificate", "The arms", "How it was made"]
    assert 'class="headline' not in page
    assert "no change is recorded" not in page
    assert "have not both been scored" not in page
    assert not re.search(r"<tbody>\s*</tbody>", page)


def test_the_least_that_a_certificate_may_hold(folder: Path, found: dict[str, Any]) -> None:
    found.update(comparisons=[], guards=[], arms=[], harm=None, gain=None, location=None, margin=None, lead=None)
    del found["code"]
    text = words(page_of(folder, found))
    assert "None" not in text
    assert "The arms" not in text
    assert "Better than what?" not in text


def test_same_files_same_page_with_unique_ids(run: Path, found: dict[str, Any]) -> None:
    page = page_of(run, found)
    assert page == render(run)
    ids = re.findall(r'\sid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]*)"', page)) <= set(ids)
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page, re.DOTALL)
    assert len(captions) == page.count("<svg")
    assert all('class="origin"' in caption for caption in captions)
    before_tables = re.split(r"<table>", page)[:-1]
    assert all('class="origin"' in part.split("</table>")[-1] for part in before_tables)


def test_hostile_strings_are_text(folder: Path, found: dict[str, Any]) -> None:
    found |= dict.fromkeys(("name", "task", "method", "reason", "rule"), HOSTILE)
    found["location"] = {"answer": HOSTILE, "reason": HOSTILE}
    found["gain"]["arm"] = found["source"]["name"] = found["items"]["tier"] = found["code"]["commit"] = HOSTILE
    for row in (*found["comparisons"], *found["arms"]):
        row["arm"] = HOSTILE
    for arm in found["arms"]:
        arm.update(what=HOSTILE, lr_from=HOSTILE)
    found["arms"][-1]["reason"] = HOSTILE
    for row in found["guards"]:
        row.update(name=HOSTILE, unit=HOSTILE)
    page = page_of(folder, found)
    assert "<script" not in page
    assert "<img" not in page
    assert "{{ 7*7 }}" in page


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.pop("verdict"), "verdict: Field required"),
        (lambda c: c.update(verdict="maybe"), "verdict: Input should be"),
        (lambda c: c.update(format="certificate 2"), "format: Input should be"),
        (lambda c: c["comparisons"][1].update(low="x"), "comparisons.1.low"),
        (lambda c: c["comparisons"][1].update(high=float("nan")), "comparisons.1.high"),
        (lambda c: c["comparisons"][0].update(kind="other"), "comparisons.0.kind"),
        (lambda c: c["guards"][0].pop("harmed"), "guards.0.harmed"),
        (lambda c: c["arms"][0]["curve"][0].update(lr=0), "arms.0.curve.0.lr"),
        (lambda c: c.update(margin=-1), "margin"),
        (lambda c: c.update(needed={"seeds": 3}), "needed.units"),
    ],
)
def test_malformed_certificate(folder: Path, found: dict[str, Any], change: Change, says: str) -> None:
    change(found)
    with pytest.raises(DataError, match=r"certificate\.json: " + re.escape(says)) as e:
        page_of(folder, found)
    assert str(e.value).endswith(f"write it anew with `pkt certify RECIPE --out {folder}`")
    assert "\n" not in str(e.value)


def test_certificate_that_is_no_json(folder: Path) -> None:
    (folder / "certificate.json").write_text("{")
    with pytest.raises(DataError, match=r"certificate\.json: not valid JSON .*pkt certify"):
        render(folder)


def test_unknown_keys_are_ignored(folder: Path, found: dict[str, Any]) -> None:
    before = page_of(folder, found)
    found["hashes"] = found["arms"][0]["hashes"] = found["comparisons"][0]["more"] = {"a": 1}
    assert page_of(folder, found) == before


def test_table_for_a_terminal(found: dict[str, Any]) -> None:
    found["comparisons"][1]["arm"] = "[red]x[/red]"
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(certificate_table(found))
    lines = [re.split(r"\s{2,}", line.strip()) for line in console.export_text().splitlines()]
    assert lines == [
        ["real source minus", "difference", "95\u00a0% interval", "p", "p (Holm)"],
        ["target", "+0.031", "[+0.008, +0.054]", "0.010", "–"],
        ["[red]x[/red]", "+0.002", "[−0.011, +0.015]", "0.700", "1.000"],
        ["shuffled_source", "+0.004", "[−0.010, +0.018]", "< 0.001", "0.400"],
        ["random_neurons", "+0.001", "[−0.012, +0.014]", "0.900", "–"],
    ]


@pytest.mark.parametrize(
    ("value", "text"), [(0.0311, "+0.031"), (-0.2, "−0.200"), (0.0, "0.000"), (-1e-17, "0.000"), (1e-5, "+0.000")]
)
def test_signed(value: float, text: str) -> None:
    assert signed(value) == text


def test_bounds_and_p_values() -> None:
    assert interval(-0.5, 0.25) == "[−0.500, +0.250]"
    assert [p_value(p) for p in (None, 0.0009, 0.001, 1.0)] == ["–", "< 0.001", "0.001", "1.000"]


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
