"""The report: same bytes every time, no loads, nothing unescaped, and words that follow from the numbers."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import report_data
from rich.console import Console

from pkt.errors import DataError
from pkt.report import plots, svg
from pkt.report.html import render, write
from pkt.report.numbers import percent
from pkt.report.run_figures import figures
from pkt.report.table import rich_table, score_rows
from pkt.report.words import changed_share, headline, shared_layers

HOSTILE = """<script>alert("1")</script>'"&<img src=x onerror=y> $\\frac{ {{ 7*7 }} --> ]]> 名前"""


@pytest.fixture
def summary() -> dict[str, Any]:
    return report_data.nano()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return render(report_data.write(tmp_path_factory.mktemp("run"), report_data.nano()))


def test_same_folder_same_bytes(tmp_path: Path, summary: dict[str, Any], page: str) -> None:
    report_data.write(tmp_path, summary)
    out = write(tmp_path)
    assert out == tmp_path / "report.html"
    assert out.read_text(encoding="utf-8") == page
    assert sorted(f.name for f in tmp_path.iterdir()) == ["env.json", "recipe.yaml", "report.html", "summary.json"]


def test_same_bytes_whatever_the_users_matplotlib_settings(tmp_path: Path, summary: dict[str, Any], page: str) -> None:
    report_data.write(tmp_path, summary)
    (tmp_path / "matplotlibrc").write_text("font.size: 30\nsvg.fonttype: path\naxes.facecolor: red\n")
    code = f"from pathlib import Path; from pkt.report.html import write; write(Path({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page


def test_same_bytes_whatever_the_last_digits_of_the_layout() -> None:
    def drawn(left: float) -> str:
        with svg.drawing():
            figure = svg.new_figure(400, 200)
            figure.set_layout_engine("none")
            figure.add_axes((left, 0.2, 0.7, 0.7)).plot([0, 1, 0.5], "o-")
            return svg.to_svg(figure, "figure", "a line")

    assert "url(#" in drawn(0.2)
    assert drawn(0.2 + 1e-12) == drawn(0.2)


def test_import_loads_no_torch() -> None:
    code = "import sys, pkt.report.html, pkt.report.table; print([m for m in ('torch', 'transformers', 'matplotlib.pyplot') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_loads_nothing(page: str) -> None:
    rest = page.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?:|//[a-z]|@import|<script|<link|<iframe|<object|<image", rest)
    assert not re.search(r'\s(src|srcset|href)="(?!#)', rest)
    assert set(re.findall(r"url\(([^)]*)", rest)) == set(re.findall(r"url\((#[^)]*)", rest))


def test_ids_are_unique_and_every_reference_has_one(page: str) -> None:
    ids = re.findall(r'\sid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', page)) <= {
        *((i, "") for i in ids),
        *(("", i) for i in ids),
    }


def test_figures_use_the_pages_colours_and_fonts(page: str) -> None:
    figures = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert "DejaVu" not in figures
    assert "currentColor" in figures
    for tag in re.findall(r"<[^>]*>", figures):
        assert not re.search(r"(?:fill|stroke): #", tag), tag


def test_hostile_strings_are_text(tmp_path: Path, summary: dict[str, Any]) -> None:
    summary |= dict.fromkeys(("name", "task", "method"), HOSTILE)
    summary["warnings"] = [HOSTILE]
    summary["target"]["name"] = summary["source"]["weights"] = summary["perplexity"]["text"] = HOSTILE
    summary["export"]["dtype"] = summary["costs"][0]["stage"] = summary["delta"][0]["part"] = HOSTILE
    summary["layers"][HOSTILE] = summary["layers"].pop("attention")
    for row in summary["scores"]:
        row["tier"] += HOSTILE
    summary["scores"].append(summary["scores"][0] | {"arm": HOSTILE})
    folder = report_data.write(tmp_path, summary)
    (folder / "recipe.yaml").write_text(HOSTILE, encoding="utf-8")
    (folder / "env.json").write_text(json.dumps({HOSTILE: {"a": HOSTILE}}), encoding="utf-8")
    text = render(folder)
    assert "<script" not in text
    assert "<img" not in text
    assert "{{ 7*7 }}" in text
    assert "&lt;script&gt;" in text


Drop = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("drop", "gone"),
    [
        (lambda s: s.pop("layers"), "Layer scores"),
        (lambda s: s["layers"].pop("attention"), "The two maps share"),
        (lambda s: s.update(layers={"ffn": {"source_scores": [], "target_scores": [], "map": []}}), "Layer scores"),
        (lambda s: s.update(history=[]), "<h2>Training"),
        (lambda s: [step.pop("penalty") for step in s["history"]], "Right: the penalty"),
        (lambda s: s.update(perplexity=None), "Perplexity"),
        (lambda s: s.update(perplexity={"target": None, "result": None, "text": "x"}), "Perplexity"),
        (lambda s: s.update(delta=[]), "The change to the target"),
        (lambda s: [row.update(relative_rms=None, weight_norm=0.0) for row in s["delta"]], "Size by layer"),
        (lambda s: s.update(scores=[]), "Scores per tier"),
        (lambda s: [row.pop("chance") for row in s["scores"]], "chance is"),
        (lambda s: s.pop("export"), "What rounding kept"),
        (lambda s: s.update(costs=[]), "<h2>Costs"),
        (lambda s: s.update(warnings=[]), "<h2>Warnings"),
        (lambda s: s["target"].pop("width"), "of its weights)"),
    ],
)
def test_missing_parts_are_left_out(tmp_path: Path, summary: dict[str, Any], page: str, drop: Drop, gone: str) -> None:
    assert gone in page
    drop(summary)
    text = render(report_data.write(tmp_path, summary))
    assert gone not in text
    assert "None" not in re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL)


def test_a_perplexity_that_is_no_number_is_a_dash(tmp_path: Path, summary: dict[str, Any]) -> None:
    summary["perplexity"]["result"] = None
    text = render(report_data.write(tmp_path, summary))
    assert '<td class="n">–</td>' in text.partition("Perplexity guard")[2].partition("</table>")[0]


@pytest.mark.parametrize(
    ("term", "says"),
    [("state_error", "to the mapped states of the source"), ("moment_error", "moments of the changed lines")],
)
def test_what_was_trained_for_is_named(tmp_path: Path, summary: dict[str, Any], term: str, says: str) -> None:
    for step in summary["history"]:
        step[term] = step.pop("cross_entropy")
    text = render(report_data.write(tmp_path, summary))
    assert says in text
    assert "mean cross-entropy of the response" not in text
    assert ("Batches differ" in text) == (term == "state_error")
    for step in summary["history"]:
        del step[term]
        step.pop("loss", None)
    assert "<h2>Training" not in render(report_data.write(tmp_path, summary))


def test_the_least_that_a_summary_must_hold(tmp_path: Path) -> None:
    least = {"name": "a", "task": "b", "method": "c", "source": {"name": "d"}, "target": {"name": "e"}}
    (tmp_path / "summary.json").write_text(json.dumps(least))
    text = render(tmp_path)
    assert "Target and result have not both been scored." in text
    assert "recipe.yaml" not in text
    assert "env.json" not in text


def test_one_step_and_unusual_deltas(tmp_path: Path, summary: dict[str, Any]) -> None:
    summary["history"] = summary["history"][:1]
    odd = {"layer": None, "part": "lm_head", "num_lines": 3, "line_axis": "rows", "delta_norm": 1.0,
           "weight_norm": 0.0, "relative_rms": None, "delta_max": float("inf")}  # fmt: skip
    summary["delta"] += [odd, odd | {"layer": 1, "part": "q", "relative_rms": float("nan"), "delta_norm": 1e200}]
    text = render(report_data.write(tmp_path, summary))
    assert "lm_head" in text


@pytest.mark.parametrize(
    ("after", "error", "verdict", "ending"),
    [
        (0.30, 0.026, "up", "up by 0.220."),
        (0.01, 0.006, "down", "down by 0.070."),
        (0.083, 0.016, "none", "no visible change."),
        (0.08, 0.0, "none", "no visible change."),
        (0.5, None, "unknown", "nothing can be said."),
    ],
)
def test_sentence_on_top(summary: dict[str, Any], after: float, error: float | None, verdict: str, ending: str) -> None:
    report_data.set_score(summary, "target", "new", standard_error=0.016)
    report_data.set_score(summary, "result", "new", score=after, standard_error=error)
    found = headline(summary)
    assert found.verdict == verdict
    assert found.outcome.startswith("On units that no split contains (tier new) the score went from 0.080 ± 0.016 to")
    assert found.outcome.endswith(ending)
    assert "no certificate" in found.caveat


@pytest.mark.parametrize(("after", "verdict"), [(0.5 + 0.0499, "none"), (0.5 + 0.0501, "up"), (0.5 - 0.0501, "down")])
def test_two_combined_standard_errors_decide(summary: dict[str, Any], after: float, verdict: str) -> None:
    report_data.set_score(summary, "target", "new", score=0.5, standard_error=0.015)
    report_data.set_score(summary, "result", "new", score=after, standard_error=0.02)
    assert headline(summary).verdict == verdict


def test_a_gain_does_not_hide_harm(summary: dict[str, Any]) -> None:
    report_data.set_score(summary, "result", "new", score=0.6)
    report_data.set_score(summary, "result", "known", score=0.5)
    found = headline(summary)
    assert found.verdict == "up"
    assert "Elsewhere: down on known (1.000 to 0.500), up on aligned" in found.beside
    assert found.beside.endswith("Perplexity on ordinary text rose by 9.4\u00a0%.")


def test_without_tiers_the_whole_split_is_told(summary: dict[str, Any]) -> None:
    summary["scores"] = [row for row in summary["scores"] if row["tier"] == "all"]
    found = headline(summary)
    assert found.outcome.startswith("On the whole test split the score went from 0.430 ± 0.017 to 0.460 ± 0.017")
    assert "other tiers" not in found.beside


def test_what_changed(summary: dict[str, Any]) -> None:
    assert headline(summary).changed == (
        "Method laten changed 136 rows and 136 columns in 4 layers of nano/target (4.7\u00a0% of its weights), "
        "with nano/source as the source."
    )
    assert changed_share(summary) == 4 * 2 * (25 + 9) * 96 / 556_512
    summary["delta"] = [row | {"num_entries": 10} for row in summary["delta"]]
    assert changed_share(summary) == 160 / 556_512


def test_shared_layers_beside_chance(summary: dict[str, Any]) -> None:
    assert shared_layers(summary["layers"]).endswith(
        "two random choices of 4 and 4 out of 6 would share 2.7 on average."
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop("method"), "method: Field required"),
        (lambda s: s["scores"][2].update(score="high"), "scores.2.score"),
        (lambda s: s["scores"][0].update(score=1.5), "scores.0.score"),
        (lambda s: s["layers"]["ffn"].update(map=[[1, 2, 3]]), "layers.ffn.map.0"),
    ],
)
def test_malformed_summary(tmp_path: Path, summary: dict[str, Any], change: Drop, says: str) -> None:
    change(summary)
    report_data.write(tmp_path, summary)
    with pytest.raises(DataError, match=re.escape(str(tmp_path / "summary.json")) + ".*" + re.escape(says)):
        render(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "null"])
def test_summary_that_is_no_object(tmp_path: Path, text: str) -> None:
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(DataError, match=r"summary\.json: .*write it anew"):
        render(tmp_path)


def test_the_top_says_what_happened_and_that_there_is_no_verdict(page: str) -> None:
    header = report_data.words(page.split("<header>")[1].split("</header>")[0])
    at = [header.index(part) for part in ("On units that no split contains", "Verdict: none", "Method laten changed")]
    assert at == sorted(at)
    assert "On tier new chance is 0.100 and the source scores 1.000." in header
    assert header.count("the score went from") == 1


def test_every_picture_says_what_is_shown_how_to_read_it_and_what_chance_would_give(page: str) -> None:
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page, re.DOTALL)
    assert len(captions) == page.count("<svg") == 5
    for caption in captions:
        assert re.findall(r"<b>(.*?)</b>", caption) == ["Shown:", "How to read it:", "By chance:"]
        assert "from summary.json" in caption


def test_captions_say_what_is_seen_here(page: str) -> None:
    text = report_data.words(page)
    assert "Here the result is visibly up on aligned; down on known." in text
    assert re.search(r"Here the highest are: FFN, source layer \d and target layer \d; attention, source layer", text)
    assert re.search(r"here [\d.]+ at step 1, [\d.]+ at step 60", text)
    assert re.search(r"Here it is largest in \w+ of layer \d: [\d.]+ %", text.replace("\u00a0", " "))


def test_missing_summary(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file; give the folder of a run that `pkt run`"):
        write(tmp_path)
    assert not list(tmp_path.iterdir())


def test_rows_keep_a_fixed_order(summary: dict[str, Any]) -> None:
    summary["scores"] = sorted(summary["scores"], key=lambda row: (row["tier"], row["arm"]))
    summary["scores"] += [summary["scores"][0] | {"arm": "noise", "tier": "extra", "num_items": 7}]
    rows = score_rows(summary)
    assert [row.tier for row in rows] == ["known", "located", "aligned", "new", "skill", "extra", "all"]
    assert list(rows[3].cells) == ["target", "source", "result"]
    assert str(rows[3].cells["target"]) == "0.080 ± 0.016"
    assert (rows[3].items, rows[3].units, rows[3].seeds, rows[3].chance) == ("300", "100", "1", 0.1)
    assert rows[5].change is None
    summary["scores"][0]["num_items"] = 5
    assert score_rows(summary)[2].items == "5–120"


def test_table_for_a_terminal(summary: dict[str, Any]) -> None:
    report_data.set_score(summary, "result", "new", standard_error=None)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(rich_table(summary))
    lines = [re.split(r"\s{2,}", line.strip()) for line in console.export_text().splitlines()]
    assert lines[0] == ["tier", "target", "source", "result", "change", "chance", "items", "units"]
    assert lines[4] == ["new", "0.080 ± 0.016", "1.000 ± 0.000", "0.083 ± unknown", "+0.003 ± unknown", "0.100",
                        "300", "100"]  # fmt: skip
    assert len(lines) == 7


def test_table_for_a_terminal_shows_brackets_as_they_are(summary: dict[str, Any]) -> None:
    for row in summary["scores"]:
        row["tier"] = "[red]x[/red]"
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(rich_table(summary))
    assert "[red]x[/red]" in console.export_text()


@pytest.mark.parametrize(
    ("locator", "unit", "said"),
    [
        (None, "nats", "raises the log-probability of the right answers, in nats, summed over the extract split"),
        ("sensitivity", None, "has far larger sums), summed over the extract split, over the model's largest"),
        ("knowledge_neurons", "probability", "by integrated gradients"),
        ("query_neurons", None, "which has no unit that compares models"),
        ("my_own", None, "score by the locator my_own, in a unit of its own"),
    ],
)
def test_layer_scores_are_told_in_the_words_of_their_locator(summary: dict[str, Any], locator: str | None, unit: str | None, said: str) -> None:  # fmt: skip
    for part in summary["layers"].values():
        part |= {} if locator is None else {"locator": locator}
    found = figures(summary, summary["layers"])["layer_scores"]
    assert said in found.shown
    assert (f"score ({unit})" if unit else "score over largest") in found.svg
    assert ("No layer is at zero" in found.chance) == (locator == "sensitivity")
    for part in summary["layers"].values():
        part["examples"] = 1
    assert "of one example, drawn at random" in figures(summary, summary["layers"])["layer_scores"].shown


def test_a_loss_on_prompts_is_called_one(summary: dict[str, Any]) -> None:
    assert "cross-entropy of the response tokens" in figures(summary, {})["losses"].shown
    found = figures(summary | {"loss_on_prompt": True}, {})["losses"]
    assert "cross-entropy of the tokens of prompts and responses" in found.shown


def test_figures_fit_a_large_pair() -> None:
    summary = report_data.large()
    for figure in (
        plots.layer_scores(summary["layers"], "nats"),
        plots.layer_maps(summary["layers"]),
        plots.delta_sizes(summary["delta"]),
    ):
        width = re.search(r'viewBox="0 0 (\d+) \d+"', figure)
        assert width
        assert int(width[1]) <= plots.WIDTH


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0 %"), (0.0047, "0.47 %"), (0.4712, "47 %"), (1.333, "133 %"), (2.7e-4, "0.027 %"), (3e-7, "3.0e-05 %")],
)
def test_percent(share: float, text: str) -> None:
    assert percent(share).replace("\u00a0", " ") == text


def test_what_the_change_took_is_said_as_far_as_it_is_known(tmp_path: Path, summary: dict[str, Any]) -> None:
    assert "The change took" not in render(report_data.write(tmp_path, summary))
    summary |= {"labels": 100, "steps": 60, "trained_parameters": 221184, "flop": 9.3e10}
    text = render(report_data.write(tmp_path, summary))
    assert (
        "The change took 100 labelled examples, 60 optimizer steps, 221,184 trained parameters, "
        "9.3e+10 floating-point operations, with location and preparation where there are any." in text
    )


def test_a_method_that_reads_no_source_is_said_to_tune(tmp_path: Path, summary: dict[str, Any]) -> None:
    text = render(report_data.write(tmp_path, summary))
    assert "takes no knowledge" not in text
    text = render(report_data.write(tmp_path, summary | {"reads_source": False}))
    assert "This is tuning, or nothing: the method takes no knowledge from a source." in text
    assert "as the source, of whose knowledge nothing is taken." in text


def test_parts_of_mmlu_and_passes_of_code_are_shown(tmp_path: Path, page: str) -> None:
    found = report_data.nano()
    found["parts"] = [
        {"arm": arm, "kind": kind, "name": name, "score": score, "standard_error": error, "num_items": 9}
        for arm, score, error in (("target", 0.25, 0.01), ("result", 0.375, None))
        for kind, name in (("group", "STEM"), ("sub-category", "math"), ("subject", "abstract_algebra"))
    ]
    found["protocol"] = {"version": 2, "shots": 5, "samples": 20, "temperature": 0.1, "top_p": 0.95, "too_long": "stop"}
    for line in found["scores"]:
        line["pass_at"] = [{"k": k, "score": k / 40, "standard_error": 0.01} for k in (1, 20)]
    shown = render(report_data.write(tmp_path, found))
    for text in ("0.250 ± 0.010", "0.375 ± unknown", "abstract algebra", "STEM", "pass@20", "0.500 ± 0.010"):
        assert text in shown
    assert "Asked with 5 worked examples, 20 samples at temperature 0.1, top-p 0.95; version 2 of the task." in shown
    assert not any(text in page for text in ("By group of subjects", "pass@k", "Asked with"))
