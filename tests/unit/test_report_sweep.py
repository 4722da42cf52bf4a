"""The page of a sweep: its pictures, axes and sentences, from the content of its JSON file."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
import sweep_data
from scipy.stats import ttest_1samp

from pkt.report.sweep import figures
from pkt.report.sweep_page import page, plain, terminal
from pkt.report.sweep_plot import axis_scale, is_log, named
from pkt.report.sweep_words import sentences
from pkt.sweeping.table import Found, _group, difference
from pkt.tier_scores import Items

TWO = {"method.steps": [2, 4, 8, 16], "method.bias": [False, True]}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([2, 4, 8, 16], True),
        ([0.05, 0.1, 0.3, 1.0], True),
        ([0, 10, 100, 1000], True),
        ([1, 2, 3, 4], False),
        ([0, 5, 10, 15, 20], False),
        ([1, 5, 10, 20], False),
        ([1, 2], False),
        ([-1, 1, 10, 100], False),
    ],
)
def test_axes_are_logarithmic_where_values_are_spaced_by_factors(values, expected):
    assert is_log(values) is expected


@pytest.mark.parametrize(
    "values", [[2, 4, 8], [0, 10, 100, 1000], [3, 1, 2], ["a", "b"], [None, 1, True], [False, True]]
)
def test_different_values_stand_at_different_places_inside_the_axis(values):
    scale = axis_scale(values)
    places = [scale.place(value) for value in values]
    assert len(set(places)) == len(values)
    assert all(scale.limits[0] < place < scale.limits[1] for place in places)
    if all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        assert sorted(values, key=scale.place) == sorted(values)


def test_values_are_named_as_in_yaml():
    assert [named(value) for value in (1, True, False, None, 0, 0.1, "x")] == [
        "1",
        "true",
        "false",
        "null",
        "0",
        "0.1",
        "x",
    ]


def test_two_axes_give_lines_and_a_heat_map():
    sweep, _ = sweep_data.make(TWO)
    found = {figure.name: figure for figure in figures(sweep)}
    assert list(found) == ["changes", "along-steps", "along-bias", "grid-steps-bias"]
    assert "bias=false" in found["along-steps"].svg
    assert "(logarithmic)" in found["along-steps"].svg
    assert "steps=16" in found["along-bias"].svg
    best = max(sweep["points"], key=lambda row: row["scores"]["new"]["score"])
    assert f"{best['scores']['new']['score']:.3f}" in found["along-steps"].read
    for figure in found.values():
        assert figure.shown
        assert figure.read
        assert figure.chance
        assert figure.origin == "sweep.json"


def test_the_differences_from_the_best_stand_where_the_picture_says():
    sweep, _ = sweep_data.make(TWO)
    along = next(figure for figure in figures(sweep) if figure.name == "along-steps")
    assert "sweep.csv has every setting against the best, paired by item" in along.read
    assert all("against_best" in plain(row, sweep) for row in sweep["points"])


def test_recipes_are_lines_and_labels_have_their_title():
    sweep, _ = sweep_data.make({"task.labels": [16, 32, 64]}, ("laten", "sft"))
    found = {figure.name: figure for figure in figures(sweep)}
    assert found["along-labels"].title == "Score against labels"
    assert ">laten<" in found["along-labels"].svg
    assert ">sft<" in found["along-labels"].svg


def test_many_other_settings_are_averaged_and_said_so():
    sweep, _ = sweep_data.make({"method.steps": [1, 2], "method.hidden": list(range(1, 11))})
    along = next(figure for figure in figures(sweep) if figure.name == "along-steps")
    assert "averaged over the other settings" in along.shown
    assert along.shown.endswith("below it the loss on the valid split, likewise.")
    few = next(figure for figure in figures(sweep_data.make(TWO)[0]) if figure.name == "along-steps")
    assert few.shown.endswith("with the band from its lowest to its highest seed.")
    assert along.svg.count("hidden=") == 0


def test_sizes_are_drawn_where_sources_differ_in_size():
    sweep, _ = sweep_data.make({"source.name": ["nano/small", "nano/large"]})
    assert "sizes" not in {figure.name for figure in figures(sweep)}
    sweep["points"][1]["source_parameters"] = 7_200_000
    found = next(figure for figure in figures(sweep) if figure.name == "sizes")
    assert [row[1] for row in found.rows] == ["5.0", "12.0"]


def test_the_same_content_gives_the_same_page():
    sweep, costs = sweep_data.make(TWO)
    assert page(sweep, costs) == page(sweep, costs)


def test_a_page_escapes_what_users_wrote_and_shows_failures():
    sweep, costs = sweep_data.make(TWO, failed=(1,))
    text = page(sweep, costs)
    assert "Does &lt;it&gt; matter?" in text
    assert "failed: the loss is not finite" in text
    assert "1 of 8 settings failed" in text
    assert '<th class="n">change</th>' in text
    names = set(re.findall(r'id="([^"]+)"', text))
    assert len(names) == len(re.findall(r'id="([^"]+)"', text))


def test_nothing_but_failures_has_a_page():
    sweep, costs = sweep_data.make({"method.steps": [1]}, failed=(0,))
    assert figures(sweep) == []
    assert "failed" in page(sweep, costs)
    assert len(terminal(sweep)) == 1
    assert plain(sweep["points"][0], sweep)["error"] == "the loss is not finite"


# what is said


def test_sentences_name_the_best_and_what_the_valid_loss_would_choose():
    sweep, _ = sweep_data.make(TWO)
    best = max(sweep["points"], key=lambda row: row["scores"]["new"]["score"])
    assert f"Highest score on tier new: {best['point']} with" in sweep["sentences"][0]
    assert any(f"would choose {sweep['points'][0]['point']} (loss 1.0000" in s for s in sweep["sentences"])
    assert sweep["sentences"][-1].startswith("Without control arms no gain here is transfer")


def test_a_loss_of_what_was_known_is_said():
    sweep, _ = sweep_data.make({"method.steps": [1, 2]})
    assert not any("knew" in sentence for sentence in sweep["sentences"])
    for row, score in zip(sweep["points"], (0.4, 0.97), strict=True):
        row["target_scores"]["known"] = {"score": 1.0, "standard_error": 0.0}
        row["scores"]["known"] = {"score": score, "standard_error": 0.02}
    said = [sentence for sentence in sentences(sweep) if "knew" in sentence]
    assert said == [
        "1 of 2 settings lose on what the target knew, nano_tuned,steps=1 most: tier known 0.400 (target 1.000)."
    ]


def test_equal_scores_are_called_equal():
    sweep, _ = sweep_data.make({"method.steps": [1]})
    twin = {**sweep["points"][0], "point": "other"}
    group = {**sweep["groups"][0], "points": [sweep["points"][0]["point"], "other"]}
    assert sentences({**sweep, "points": [sweep["points"][0], twin], "groups": [group]})[0].startswith(
        "All 2 settings score the same"
    )


# the intervals


def items(scores: np.ndarray, units: list[str] | None = None) -> Items:
    number = scores.shape[1]
    return Items([str(i) for i in range(number)], units or [str(i) for i in range(number)], [""] * number, scores)


def test_one_seed_has_the_interval_of_units():
    rng = np.random.default_rng(0)
    one, two = rng.integers(0, 2, (1, 50)).astype(float), rng.integers(0, 2, (1, 50)).astype(float)
    found = difference(items(one), items(two), 0.95)
    expected = ttest_1samp((one - two)[0], 0).confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx(tuple(expected), rel=1e-9)
    assert found["p"] == pytest.approx(ttest_1samp((one - two)[0], 0).pvalue)


def test_the_target_counts_at_every_seed():
    rng = np.random.default_rng(1)
    one, two = rng.integers(0, 2, (3, 40)).astype(float), rng.integers(0, 2, (1, 40)).astype(float)
    assert difference(items(one), items(two), 0.95) == difference(items(one), items(np.repeat(two, 3, 0)), 0.95)


def test_other_items_or_one_unit_have_no_interval():
    scores = np.array([[0.0, 1.0]])
    assert difference(items(scores, ["a", "a"]), items(scores, ["a", "a"]), 0.95) is None
    assert difference(items(scores), items(np.array([[0.0, 1.0, 1.0]])), 0.95) is None


def test_intervals_cover_the_truth():
    """Seeds and units both vary: the interval of the change holds the true one in about 95 of 100 draws."""
    rng, held, draws = np.random.default_rng(2), 0, 400
    for _ in range(draws):
        seeds, units = rng.normal(0, 0.05, (3, 1)), rng.normal(0, 0.3, (1, 60))
        one = 0.5 + 0.1 + seeds + units + rng.normal(0, 0.1, (3, 60))
        found = difference(items(one), items(np.full((1, 60), 0.5)), 0.95)
        held += found["low"] <= 0.1 <= found["high"]
    assert 0.92 <= held / draws <= 1


def test_every_pair_of_axes_has_a_heat_map_with_a_panel_for_each_setting_of_the_rest():
    over = {"method.hidden": [48, 192], "method.depth": [2, 3], "method.bias": [False, True]}
    sweep, _ = sweep_data.make(over)
    found = [figure for figure in figures(sweep) if figure.name.startswith("grid")]
    assert [figure.name for figure in found] == [
        f"grid-{a}-{b}" for a, b in itertools.combinations(("hidden", "depth", "bias"), 2)
    ]
    assert "bias=true" in found[0].svg


def test_settings_that_are_equal_are_seldom_called_below_the_best():
    """The best of sixteen equal settings is the luckiest: that must not condemn the others."""
    rng, called, draws = np.random.default_rng(3), 0, 100
    for _ in range(draws):
        found = []
        for number in range(16):
            scored = items(rng.integers(0, 2, (1, 60)).astype(float))
            row = {"task": "t", "target": "m", "tier": "new", "point": str(number), "change": None, "valid_loss": None, "against_best": None}  # fmt: skip
            found.append(Found(row | {"scores": {"new": {"score": float(scored.scores_SI.mean())}}}, scored))
        _group(found)
        called += any(one.row["against_best"] and one.row["against_best"]["p_holm"] < 0.05 for one in found)
    assert called <= 10


def test_one_unit_alone_has_a_page_without_changes():
    content, costs = sweep_data.make({"source.name": ["nano/source", "nano/big"]})
    for number, row in enumerate(content["points"], 1):
        row.update(change=None, against_best=None, source_parameters=number * 1_000_000)
    said = sentences(content)
    assert "cannot be said" in said[1]
    assert not any("more than chance allows" in one for one in said)
    text = page({**content, "sentences": said}, costs)
    assert '<figure id="changes">' not in text
    assert '<figure id="sizes">' not in text
    assert '<figure id="along-name">' in text


def test_axes_with_one_last_part_have_pictures_of_their_own():
    content, _ = sweep_data.make({"method.name": ["laten", "direct"], "source.name": ["nano/source", "nano/big"]})
    found = figures(content)
    names = [figure.name for figure in found]
    assert len(set(names)) == len(names)
    assert {"along-method-name", "along-source-name"} <= set(names)
    assert all("method.name=direct" in figure.svg for figure in found if figure.name == "along-source-name")
