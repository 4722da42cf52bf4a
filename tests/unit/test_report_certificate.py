"""The certificate in the report and on the terminal: words, figures and tables that follow from `certificate.json`."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import report_data
from report_data import words
from rich.console import Console

from pkt.errors import DataError
from pkt.report.certificate import read_certificate
from pkt.report.html import render
from pkt.report.numbers import interval, p_value, signed
from pkt.report.verdict import certificate_table, stamp, verdict_lines

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
    assert verdict_lines(found)[0] == f"verdict: {title.removeprefix('Verdict: ')}: {found['reason']}"
    assert "no harm: 2 guards within their margin." in verdict_lines(found)


def test_tuning_of_a_method_that_reads_no_source(found: dict[str, Any]) -> None:
    assert "at least one control arm" in stamp(found, found)["meaning"]
    found["comparisons"] = found["comparisons"][:1]
    assert stamp(found, found)["meaning"].startswith("The target improves, but the method reads no source")


def test_preliminary(folder: Path, found: dict[str, Any]) -> None:
    found.update(preliminary=True, preliminary_for=["3 seeds, and not 5", "self_source was left out"])
    text = words(page_of(folder, found))
    assert "Verdict: tuning, not transfer preliminary" in text
    assert "Preliminary, for: 3 seeds, and not 5; self_source was left out." in text
    assert verdict_lines(found)[0].startswith("verdict: tuning, not transfer, preliminary: ")


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
    assert "source-attributable gain−0.004 [−0.020, +0.012], measured against self_source" in text
    assert "Location did not matter. Random neurons did as well." in text
    assert "300 items of 100 units (tier new), 5 seeds (0, 1, 2, 3, 4), margin 0.093" in text
    found.update(gain=None, location=None, lead=None)
    text = words(page_of(folder, found))
    assert "source-attributable" not in text
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


def test_the_top_names_the_verdict_with_its_reason_and_harm(folder: Path, found: dict[str, Any]) -> None:
    def top() -> str:
        return words(page_of(folder, found).split("<header>")[1].split("<section")[0])

    assert f"Tuning, not transfer: {found['reason']} from certificate.json" in top()
    found.update(verdict="no_effect", preliminary=True, harm=True)
    assert f"No effect (preliminary): {found['reason']} It did harm." in top()


def test_captions_say_what_is_seen_here(folder: Path, found: dict[str, Any]) -> None:
    text = words(page_of(folder, found))
    assert "Here it is better than target." in text
    assert "Here none was harmed." in text
    for row in found["guards"]:
        row["harmed"] = True
    for row in found["comparisons"]:
        row["low"] = -0.1
    text = words(page_of(folder, found))
    assert "Here it is better than none of them." in text
    assert "Here known, perplexity were harmed." in text


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
