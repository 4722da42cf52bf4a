"""Tables, CSV and pictures of a comparison, from numbers that are known."""

from __future__ import annotations

import csv
import io
import re

import comparison_data
import pytest
import report_data
from comparison_data import level, row
from rich.console import Console

from pkt.errors import DataError
from pkt.report.comparison import as_csv, cost, large, sentence, terminal, verdict
from pkt.report.comparison_figures import gains
from pkt.report.comparison_page import page, write
from pkt.report.frontier import Point, pictures, undominated
from pkt.report.frontier_plot import Scale, apart, round_numbers


def comparison(*rows):
    return {"format": "comparison 1", "runs": list(rows)}


def printed(content, width):
    console = Console(width=width, record=True, file=io.StringIO())
    for part in terminal(content, width):
        console.print(part)
    return console.export_text()


def test_a_wide_terminal_gets_two_tables_and_a_narrow_one_three_with_every_number():
    content = comparison(row(), row("nano_sft", costs={"flop": 1.234e12, "labels": None}))
    wide, narrow = printed(content, 200), printed(content, 100)
    assert [text.count("nano_sft") for text in (wide, narrow)] == [2, 3]
    assert max(map(len, narrow.splitlines())) <= 100
    for number in ("0.980±0.014", "0.100±0.030", "−0.004 [−0.020, +0.012]", "1.23e12", "221,184", "3.9", "0.48"):
        assert number in wide
        assert number in narrow
    assert "nano/mmlu, from nano/source to nano/target, decided by tier new (chance 0.100)" in wide
    assert "–" in wide.splitlines()[-1]


def test_a_group_without_scores_has_no_table_of_tiers():
    text = printed(comparison(row("a" * 40, scores={}, verdict=None, state="failed: " + "for a reason " * 9)), 100)
    assert text.count("run  ") == 2


def test_runs_of_another_task_have_tables_of_their_own_in_the_order_given():
    content = comparison(row("a"), row("b", task="nano/gsm8k", chance={}), row("c"))
    text = printed(content, 200)
    assert [re.split(r",|\s{2,}", line)[0] for line in text.splitlines() if line[:4] in ("nano", "a   ", "b   ", "c   ")] == [
        "nano/mmlu", "a", "c", "a", "c", "nano/gsm8k", "b", "b",
    ]  # fmt: skip
    assert "decided by tier new\n" in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "no effect; no harm"),
        ({"verdict": "tuning", "preliminary": True, "harm_flag": "harm"}, "tuning, not transfer, preliminary; harm"),
        ({"verdict": None, "state": "run"}, "no certificate"),
        ({"verdict": None, "state": "unfinished: 1 of 5 seeds"}, "unfinished: 1 of 5 seeds"),
    ],
)
def test_verdicts_in_words(changes, said):
    assert verdict(row(**changes)) == said


@pytest.mark.parametrize(("value", "said"), [(0, "0"), (9.3e10, "9.30e10"), (5, "5.00e0"), (1.5e-7 + 1e5, "1.00e5")])
def test_large_numbers(value, said):
    assert large(value) == said
    assert cost("flop", value) == said


def test_csv_has_one_line_per_run_and_plain_numbers():
    unknown = row("b", verdict=None, gain=None, scores={}, costs=dict.fromkeys(row()["costs"]))
    lines = list(csv.DictReader(io.StringIO(as_csv(comparison(row("a, with a comma"), unknown)))))
    assert [line["run"] for line in lines] == ["a, with a comma", "b"]
    first, second = lines
    assert float(first["new_score"]) == 0.1
    assert float(first["new_standard_error"]) == pytest.approx(0.03)
    assert (float(first["gain"]), float(first["gain_low"]), first["gain_arm"]) == (-0.004, -0.02, "self_source")
    assert (first["labels"], float(first["flop"]), first["verdict"]) == ("100", 9.3e10, "no_effect")
    assert (first["target_score"], first["source_score"], first["num_seeds"]) == ("0.073", "1.0", "3")
    assert all(second[key] == "" for key in ("new_score", "gain", "verdict", "labels", "flop", "seconds"))


def point(run, cost_, score):
    return Point(run, run, cost_, score, 0.01, "none", harm=False)


def test_undominated_runs_are_those_that_no_other_beats_at_no_more_cost():
    points = [point("a", 1, 0.1), point("b", 2, 0.3), point("c", 2, 0.2), point("d", 5, 0.25), point("e", 9, 0.4)]
    assert [p.run for p in undominated(points)] == ["a", "b", "e"]
    assert [p.run for p in undominated([point("a", 1, 0.1), point("b", 1, 0.1)])] == ["a", "b"]


def test_pictures_say_what_is_not_dominated():
    rows = [
        row("cheap", costs={"flop": 1e9, "labels": 16}, scores={"new": level(0.05)}),
        row("good", costs={"flop": 1e10, "labels": 64}, scores={"new": level(0.3)}),
        row("dear", costs={"flop": 1e11, "labels": 32}, scores={"new": level(0.2)}),
        row("unknown", costs={"flop": None, "labels": 16}, scores={"new": level(0.9)}),
    ]
    by_flop, by_labels = pictures(comparison(*rows))
    assert by_flop.undominated == ["cheap", "good"]
    assert by_labels.undominated == ["unknown"]
    said = by_flop.figure.read
    assert "are these runs: cheap (1.00e9 FLOP, 0.050 ± 0.022), good (1.00e10 FLOP, 0.300 ± 0.046)." in said
    assert "is this run: unknown (16 labels, 0.900 ± 0.030)." in by_labels.figure.read
    assert "of these cheap scored no better" in said
    assert "2 of 3 runs score above the target as it was (0.073)" in said
    assert "Not shown, for want of a score on tier new or a count of FLOP: 1 run." in by_flop.figure.shown
    assert by_flop.figure.chance.startswith("The best constant guess scores 0.100.")
    assert by_flop.figure.origin == "comparison.json"


def test_a_tier_can_be_chosen_and_one_that_nobody_has_is_refused():
    found = pictures(comparison_data.frontier(), "skill")
    assert [p.figure.title for p in found] == ["Score on tier skill against FLOP", "Score on tier skill against labels"]
    with pytest.raises(DataError, match="--tier 'nwe': no run has such a tier; there are known, located"):
        pictures(comparison_data.frontier(), "nwe")


def test_runs_that_were_scored_on_other_items_are_said_to_be():
    other = row("b", target_scores={"new": level(0.1)})
    assert (
        "not scored on the same items, or not in one precision" in pictures(comparison(row("a"), other))[0].figure.shown
    )
    other = row("b", items="others")
    assert "not scored on the same items, and do not compare" in pictures(comparison(row("a"), other))[0].figure.shown
    assert "not scored" not in pictures(comparison(row("a"), row("b")))[0].figure.shown


def test_a_group_without_costs_has_no_pictures():
    assert pictures(comparison(row(costs={"flop": None, "labels": None}))) == []
    assert [p.figure.title for p in pictures(comparison(row(costs={"flop": None})))] == [
        "Score on tier new against labels"
    ]


def test_zero_stands_left_of_everything_on_a_logarithmic_axis():
    scale = Scale([0, 16, 64], 2)
    assert scale.at(64) - scale.at(16) == 2
    assert scale.limits()[0] < scale.at(0) < scale.at(16) < scale.at(64) < scale.limits()[1]
    assert Scale([8], 2).at(8) == 3
    assert Scale([0, 0], 10).limits()[0] < Scale([0, 0], 10).at(0) < Scale([0, 0], 10).limits()[1]


def test_names_are_moved_apart_no_more_than_needed():
    assert apart([0.1, 0.5, 0.9], 0.1) == [0.1, 0.5, 0.9]
    found = apart([0.2, 0.2, 0.2], 0.1)
    assert found == pytest.approx([0.2, 0.3, 0.4])
    top = apart([0.9, 0.95, 0.99], 0.1)
    assert top == pytest.approx([0.8, 0.9, 1.0])


@pytest.mark.parametrize(
    ("low", "high", "found"), [(9, 12, [1e9, 1e10, 1e11, 1e12]), (10, 10.5, [1e10, 2e10, 5e10]), (2, 2, [100])]
)
def test_round_numbers(low, high, found):
    assert round_numbers(low, high) == pytest.approx(found)


def test_the_page_holds_every_run_number_and_picture(tmp_path):
    content = comparison_data.frontier()
    files = write(content, tmp_path, frontier=True)
    names = [f"frontier-nano-mmlu-nano-source-nano-target-new-{cost}.svg" for cost in ("flop", "labels")]
    assert [f.name for f in files] == ["comparison.json", "comparison.csv", "comparison.html", *names]
    text = (tmp_path / "comparison.html").read_text()
    words = report_data.words(text)
    assert all(one["run"] in words for one in content["runs"])
    assert "Not dominated" in words
    assert text.count("<figure ") == 3
    assert text == page(content, pictures(content))
    for name in names:
        svg = (tmp_path / name).read_text()
        assert svg.startswith("<svg xmlns")
        assert all(recipe in svg for recipe in comparison_data.SLOPES if len(recipe) < 26)


def test_the_page_escapes_names():
    assert "<i>" not in page(comparison(row("<i>slanted</i>", folder="<i>", files={"<i>": "<i>"})))


@pytest.mark.parametrize(("mark", "marker"), [("transfer", True), ("none", False)])
def test_marks_that_do_not_occur_are_not_explained_in_the_picture(mark, marker):
    one = row(verdict="transfer" if marker else None, asked=marker)
    svg = pictures(comparison(one))[0].figure.svg
    assert (">transfer<" in svg) is marker
    assert (">no certificate<" in svg) is not marker
    assert ">harm<" not in svg


def test_runs_scored_on_other_items_are_said_not_to_compare():
    other = {tier: comparison_data.level(0.073, items=10) for tier in comparison_data.TIERS}
    same = {"format": "comparison 1", "runs": [comparison_data.row(), comparison_data.row("nano_sft")]}
    mixed = {
        "format": "comparison 1",
        "runs": [comparison_data.row(), comparison_data.row("nano_sft", target_scores=other)],
    }
    says = "The target's scores differ: these runs were not scored on the same items"
    assert says.replace("'", "&#39;") not in page(same)
    assert says.replace("'", "&#39;") in page(mixed)
    assert not any(says in str(line) for line in terminal(same, 200))
    assert any(says in str(line) for line in terminal(mixed, 200))


def test_the_sentence_on_top_names_transfer_tuning_harm_and_runs_that_say_nothing():
    rows = [
        row("a", verdict="transfer"),
        row("b", verdict="tuning", harm=True, preliminary=True),
        row("c", verdict="tuning"),
        row("d", verdict=None, asked=False, state="run", gain=None),
        row("e", verdict="tuning", asked=False, harm=True, gain=None),
    ]
    said = "Of 5 runs, 1 is certified transfer (a); 2 are tuning (b, c); 2 do harm (b, e); 2 have no certificate with control arms and say "
    said += "nothing of where a score came from (d, e). 1 of 3 verdicts is preliminary."
    assert sentence(comparison(*rows)) == said
    assert said in report_data.words(page(comparison(*rows)))
    assert sentence(comparison(row("x"))) == "Of 1 run, none is certified transfer; 1 is without effect (x)."
    assert sentence(comparison(*rows[3:4])) == (
        "Of 1 run, 1 has no certificate with control arms and says nothing of where a score came from (d)."
    )
    many = sentence(comparison(*(row(f"r{i}", verdict="undecided") for i in range(9))))
    assert many == "Of 9 runs, none is certified transfer; 9 are undecided (r0, r1, r2 and 6 more)."


def test_a_name_that_stands_in_several_groups_is_told_with_what_differs():
    rows = [
        row("a", verdict="tuning"),
        row("a", verdict="tuning", source="nano/big"),
        row("a", verdict="tuning", task="nano/gsm8k", harm=True),
        row("b", verdict="transfer", target="nano/other"),
    ]
    names = [f"a on {at}" for at in ("nano/mmlu from nano/source", "nano/mmlu from nano/big", "nano/gsm8k from nano/source")]  # fmt: skip
    assert sentence(comparison(*rows)) == (
        f"Of 4 runs, 1 is certified transfer (b); 3 are tuning ({', '.join(names)}); 1 does harm ({names[2]})."
    )
    to = [row("a"), row("a", target="nano/other")]
    assert "(a to nano/target, a to nano/other)" in sentence(comparison(*to))


def test_gains_stand_under_their_verdicts_beside_zero_and_the_margin():
    def gain(mean):
        return {"arm": "no_source", "mean": mean, "low": mean - 0.05, "high": mean + 0.05}

    rows = [
        row("flat", gain=gain(0.01)),
        row("lost", verdict="tuning", gain=gain(-0.2)),
        row("won", verdict="transfer", gain=gain(0.3)),
        row("better", verdict="transfer", gain=gain(0.4)),
        row("unknown", verdict=None, gain=None),
    ]
    found = gains(rows)
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", found.svg)
    assert [t for t in texts if t in {"flat", "lost", "won", "better"}] == ["better", "won", "lost", "flat"]
    assert {"transfer", "tuning, not transfer", "no effect", "no gain (0.000)", "margin (0.093)"} <= set(texts)
    assert "0.300 [0.250, 0.350]" in texts
    assert "Here 2 of 4 are wholly right of zero (better, won), 1 wholly left of it (lost)." in found.read
    assert "Not shown, for want of such a gain: 1 run." in found.read
    assert "about 0.2 of these 4" in found.chance
    assert found.rows[0] == [
        "better",
        "transfer",
        "no_source",
        "+0.400",
        "[+0.350, +0.450]",
        "0.093",
        "runs/better/certificate.json",
    ]
    rows[0]["margin"] = 0.2
    assert {"smallest margin (0.093)", "largest margin (0.200)"} <= set(re.findall(r">([^<]*)</text>", gains(rows).svg))
    assert gains(rows).svg == gains([*rows[1:], rows[0]]).svg
    assert gains(rows[-1:]) is None


def test_every_number_of_the_page_has_its_file():
    text = page(comparison(row("a"), row("b", files={"scores": "summary.json"})))
    words = report_data.words(text)
    assert "scores: arms/real_source/seed-{0,1,2}.jsonl" in words
    assert "verdict and gain: certificate.json" in words
    assert "scores: summary.json" in words
    for part in text.split("<table>")[:-1]:
        assert 'class="origin"' in part.split("</table>")[-1]
    for part in re.findall(r"<figcaption>(.*?)</figcaption>", text, re.DOTALL):
        assert [said in part for said in ("Shown:", "How to read it:", "By chance:", 'class="origin"')] == [True] * 4
