"""The verdict: its rule as a table, and what a certificate says about scores made for the purpose."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import t as student

from pkt.certify.certificate import Evidence, Guard, judge, needed, rule_in_words, verdict
from pkt.certify.statistics import Spread

LEVEL, SEEDS, UNITS = 0.95, 5, 20
NAMES = [f"u{i}" for i in range(UNITS)]


def at(low: float, high: float) -> Spread:
    """A difference with these bounds."""
    half = (high - low) / 2 / student.ppf((1 + LEVEL) / 2, 49)
    return Spread((low + high) / 2, 0.0, 50 * half**2, SEEDS, 50)


def test_bounds_are_what_the_table_says():
    assert at(0.1, 0.5).interval(LEVEL) == pytest.approx((0.1, 0.5))


GAIN, NOTHING, FALL, WIDE = (0.2, 0.4), (-0.05, 0.05), (-0.4, -0.2), (-0.3, 0.3)
MORE, SAME, LESS, OPEN, SLIGHTLY_MORE = (0.15, 0.4), (-0.08, 0.09), (-0.4, -0.2), (-0.1, 0.3), (0.01, 0.09)


@pytest.mark.parametrize(
    ("target", "sources", "margin", "expected"),
    [
        (GAIN, [MORE], 0.1, "transfer"),
        (GAIN, [MORE, MORE, MORE], 0.1, "transfer"),
        (GAIN, [MORE, OPEN], 0.1, "undecided"),
        (GAIN, [OPEN, MORE, MORE], 0.1, "undecided"),
        (GAIN, [MORE, SAME], 0.1, "tuning"),
        (GAIN, [SAME, OPEN], 0.1, "tuning"),
        (GAIN, [LESS], 0.1, "tuning"),
        (GAIN, [SLIGHTLY_MORE], 0.1, "transfer"),
        (GAIN, [SLIGHTLY_MORE, OPEN], 0.1, "tuning"),
        (GAIN, [OPEN], 0.1, "undecided"),
        (GAIN, [], 0.1, "undecided"),
        (GAIN, [MORE], None, "transfer"),
        (GAIN, [MORE, SAME], None, "undecided"),
        (GAIN, [LESS], None, "undecided"),
        (NOTHING, [MORE], 0.1, "no_effect"),
        (NOTHING, [SAME], 0.1, "no_effect"),
        (NOTHING, [], 0.1, "no_effect"),
        (NOTHING, [SAME], 0.04, "undecided"),
        (NOTHING, [SAME], None, "undecided"),
        ((0.01, 0.09), [OPEN], 0.1, "no_effect"),
        ((0.01, 0.09), [MORE], 0.1, "transfer"),
        ((-0.09, -0.01), [LESS], 0.1, "no_effect"),
        (FALL, [MORE], 0.1, "undecided"),
        (FALL, [LESS], 0.1, "undecided"),
        (WIDE, [MORE], 0.1, "undecided"),
        (WIDE, [SAME], 0.1, "undecided"),
        ((-0.05, 0.15), [MORE], 0.1, "undecided"),
        ((-0.15, 0.05), [SAME], 0.1, "undecided"),
    ],
)
def test_rule(target, sources, margin, expected):
    arms = {f"arm {i}": at(*bounds) for i, bounds in enumerate(sources)}
    assert verdict(at(*target), arms, margin, LEVEL) == expected


@pytest.mark.parametrize(
    ("target", "expected"), [(GAIN, "tuning"), (NOTHING, "no_effect"), (FALL, "undecided"), (WIDE, "undecided")]
)
def test_a_method_without_a_source_cannot_transfer(target, expected):
    for arms in ({}, {"random_source": at(*MORE)}):
        assert verdict(at(*target), arms, 0.1, LEVEL, reads_source=False) == expected
    assert verdict(at(*GAIN), {}, None, LEVEL, reads_source=False) == "tuning"


def test_rule_against_its_sentence():
    """All combinations, against the sentence of the docs."""
    bounds = [MORE, SAME, LESS, OPEN, SLIGHTLY_MORE]
    for target, one, two, margin in itertools.product([GAIN, NOTHING, FALL, WIDE], bounds, bounds, [0.1, 0.02, None]):
        gained, above = target[0] > 0, one[0] > 0 and two[0] > 0
        same = margin is not None and (one[1] < margin or two[1] < margin)
        still = margin is not None and -margin < target[0] and target[1] < margin
        expected = "undecided"
        if gained and above:
            expected = "transfer"
        elif gained and same:
            expected = "tuning"
        elif still:
            expected = "no_effect"
        arms = {"random_source": at(*one), "no_source": at(*two)}
        assert verdict(at(*target), arms, margin, LEVEL) == expected


def test_needed_really_settles_it_and_one_less_does_not():
    target = Spread(0.2, 0.05, 0.05, 5, 40)
    arms = {"random_source": Spread(0.15, 0.05, 0.05, 5, 40), "no_source": Spread(0.2, 0.02, 0.2, 5, 40)}
    assert verdict(target, arms, 0.05, LEVEL) == "undecided"

    def then(seeds: int, units: int) -> str:
        scaled = {arm: s.scaled(seeds, units) for arm, s in arms.items()}
        return verdict(target.scaled(seeds, units), scaled, 0.05, LEVEL)

    found = needed(target, arms, 0.05, LEVEL)
    assert 5 < found["seeds"] <= 200
    assert then(found["seeds"], 40) == "transfer"
    assert then(found["seeds"] - 1, 40) == "undecided"
    few_seeds = Spread(0.2, 0.0, 1.0, 5, 40)
    found = needed(few_seeds, {"random_source": few_seeds}, 0.05, LEVEL)
    assert found["seeds"] is None  # without variance over seeds, more of them change nothing
    more = few_seeds.scaled(5, found["units"])
    assert verdict(more, {"random_source": more}, 0.05, LEVEL) == "transfer"
    fewer = few_seeds.scaled(5, found["units"] - 2)
    assert verdict(fewer, {"random_source": fewer}, 0.05, LEVEL) == "undecided"


def test_needed_is_none_where_no_number_settles_it():
    fallen = Spread(-0.3, 0.05, 0.3, 5, 40)
    assert needed(fallen, {"random_source": at(*MORE)}, 0.1, LEVEL) == {"seeds": None, "units": None}
    assert needed(at(*GAIN), {}, 0.1, LEVEL) == {"seeds": None, "units": None}


def column(mean: float, sd: float = 0.0) -> np.ndarray:
    """Scores (S, I) with this mean and, over units, this standard deviation."""
    z = np.linspace(-1, 1, UNITS)
    z = (z - z.mean()) / z.std(ddof=1)
    return np.tile(mean + sd * z, (SEEDS, 1))


def judged(arms: dict[str, float], *, sd=0.05, source=1.0, target=0.1, guards=(), seeds=SEEDS, margin=None, **rest):
    """A certificate of arms with these scores, `real_source` among them; every arm but that has no spread."""
    scores = {arm: column(mean, sd if arm == "real_source" else 0.0)[:seeds] for arm, mean in arms.items()}
    evidence = Evidence(column(target)[0], column(source)[0], scores, NAMES, guards)
    return judge(evidence, margin=margin, level=LEVEL, **{"reads_source": True, **rest})


def test_a_certificate_of_transfer():
    arms = {"real_source": 0.5, "random_source": 0.2, "no_source": 0.3, "random_neurons": 0.45}
    found = judged(arms)
    assert found["verdict"] == "transfer"
    assert (found["preliminary"], found["harm"], found["needed"]) == (False, None, None)
    assert (found["lead"], found["margin"]) == pytest.approx((0.9, 0.09))
    assert found["scores"] == pytest.approx({"target": 0.1, "source": 1.0})
    rows = {row["arm"]: row for row in found["comparisons"]}
    assert {arm: row["kind"] for arm, row in rows.items()} == {
        "target": "target",
        "random_source": "source",
        "no_source": "source",
        "random_neurons": "locator",
    }
    assert {arm: row["mean"] for arm, row in rows.items()} == pytest.approx(
        {"target": 0.4, "random_source": 0.3, "no_source": 0.2, "random_neurons": 0.05}
    )
    half = student.ppf(0.975, UNITS - 1) * 0.05 / math.sqrt(UNITS)
    assert (rows["no_source"]["low"], rows["no_source"]["high"]) == pytest.approx((0.2 - half, 0.2 + half))
    assert rows["no_source"]["df"] == pytest.approx(UNITS - 1)
    assert found["gain"] == {"arm": "no_source", **{k: rows["no_source"][k] for k in ("mean", "low", "high")}}
    assert "0.200 [+0.177, +0.223]" in found["reason"]


def test_holm_runs_over_the_source_arms_alone():
    arms = {"real_source": 0.5, "random_source": 0.475, "no_source": 0.47, "random_neurons": 0.5, "wrong_task": 0.1}
    rows = {row["arm"]: row for row in judged(arms)["comparisons"]}
    p = {arm: row["p"] for arm, row in rows.items()}
    assert p["no_source"] < p["random_source"] < 0.1
    assert rows["no_source"]["p_holm"] == pytest.approx(2 * p["no_source"])
    assert rows["random_source"]["p_holm"] == pytest.approx(max(p["random_source"], 2 * p["no_source"]))
    assert all(rows[arm]["p_holm"] is None for arm in ("target", "random_neurons", "wrong_task"))


@pytest.mark.parametrize("sources", [(0.2, 0.3), (0.5, 0.2), (0.46, 0.2)])
def test_locator_arms_change_no_verdict(sources):
    arms = {"real_source": 0.5, "random_source": sources[0], "no_source": sources[1]}
    alone = judged(arms)
    for score in (0.0, 0.5, 0.9):
        found = judged({**arms, "random_neurons": score, "wrong_task": score})
        same = ("verdict", "reason", "gain", "needed", "margin", "harm")
        assert {key: found[key] for key in same} == {key: alone[key] for key in same}


@pytest.mark.parametrize(
    ("locators", "answer"),
    [
        ({"random_neurons": 0.2, "wrong_task": 0.3}, "mattered"),
        ({"random_neurons": 0.5, "wrong_task": 0.2}, "did_not_matter"),
        ({"random_neurons": 0.9}, "did_not_matter"),
        ({"random_neurons": 0.41, "wrong_task": 0.2}, "undecided"),
        ({}, "not_asked"),
    ],
)
def test_whether_location_mattered(locators, answer):
    """Bounds of random_neurons at 0.41 are 0.09 -/+ 0.11: around zero, and not below the margin."""
    found = judged({"real_source": 0.5, "random_source": 0.2, **locators}, sd=0.24 if answer == "undecided" else 0.02)
    assert found["location"]["answer"] == answer


def test_fewer_than_five_seeds_are_preliminary():
    arms = {"real_source": 0.5, "random_source": 0.2}
    assert [judged(arms, seeds=n)["preliminary"] for n in (2, 4, 5)] == [True, True, False]


def test_without_a_lead_there_is_no_margin():
    arms = {"real_source": 0.5, "random_source": 0.5}
    for source in (0.1, 0.05):
        found = judged(arms, source=source)
        assert (found["margin"], found["verdict"]) == (None, "undecided")
        assert "there is nothing to transfer and no margin" in found["reason"]
        assert found["preliminary_for"] == [
            "the source has no lead over the target on these items, so there is nothing to transfer"
        ]
        assert "unknown" in found["rule"]
    found = judged(arms, source=0.05, margin=0.1)
    assert (found["margin"], found["verdict"]) == (0.1, "tuning")
    assert judged(arms, margin=0.02)["margin"] == 0.02


@pytest.mark.parametrize(("level", "said"), [(0.95, "95"), (0.975, "97.5"), (0.995, "99.5")])
def test_the_rule_says_what_the_code_does(level, said):
    text = rule_in_words(0.1, level, reads_source=True)
    assert f"L and U are {said}\u00a0% bounds" in text
    assert (
        "transfer: L > 0 against the target and against every source arm. tuning: L > 0 against the target, and U < m"
        in text
    )
    assert text.endswith("at the edge of what was tried, or a source without a lead over the target.")
    text = judged({"real_source": 0.5}, reads_source=False)["rule"]
    assert "transfer: cannot be, for the method reads no source. tuning: L > 0 against the target. no_effect" in text


def test_a_method_that_reads_no_source_has_no_gain():
    found = judged({"real_source": 0.5, "random_neurons": 0.1}, reads_source=False)
    assert (found["verdict"], found["gain"]) == ("tuning", None)
    assert "reads no source" in found["reason"]
    assert found["location"]["answer"] == "mattered"


@pytest.mark.parametrize("arms", [{"real_source": 0.5}, {"real_source": 0.5, "random_neurons": 0.2}])
def test_without_source_arms_the_cause_is_open(arms):
    found = judged(arms)
    assert (found["verdict"], found["gain"]) == ("undecided", None)
    assert "its cause is open" in found["reason"]


def test_a_fall_is_undecided_and_says_so():
    found = judged({"real_source": 0.2, "random_source": 0.1}, target=0.6)
    assert found["verdict"] == "undecided"
    assert found["needed"] == {"seeds": None, "units": None}
    assert "it falls" in found["reason"]


SD = 0.1
STEP = SD / math.sqrt(UNITS)


def guard(name: str, p: float, margin: float | None = 0.1) -> Guard:
    """A guard whose one-sided p-value of a fall beyond its margin is `p`."""
    mean = -(margin or 0.1) + student.ppf(p, UNITS - 1) * STEP
    return Guard(name, "score", column(0.0)[0], column(mean, SD), NAMES, [1.0] * UNITS, margin)


def test_harm_is_a_fall_beyond_the_margin():
    arms = {"real_source": 0.5, "random_source": 0.2}
    for p, harmed in ((0.02, True), (0.03, False), (0.9, False)):
        found = judged(arms, guards=[guard("known", p)])
        assert found["harm"] is harmed
        assert found["guards"][0]["p"] == pytest.approx(p)
        assert (found["guards"][0]["high"] < -0.1) == harmed
    assert found["verdict"] == judged(arms)["verdict"]


def test_holm_over_guards_saves_what_its_own_interval_condemns():
    found = judged({"real_source": 0.5, "random_source": 0.2}, guards=[guard("known", 0.02), guard("other", 0.4)])
    known, other = found["guards"]
    assert known["high"] < -known["margin"]
    assert (known["p_holm"], other["p_holm"]) == pytest.approx((0.04, 0.4))
    assert [row["harmed"] for row in found["guards"]] == [False, False]
    assert found["harm"] is False
    found = judged({"real_source": 0.5, "random_source": 0.2}, guards=[guard("known", 0.01), guard("other", 0.02)])
    assert [row["harmed"] for row in found["guards"]] == [True, True]
    assert found["harm"] is True


def test_a_guard_has_its_own_margin_or_the_certificates():
    arms = {"real_source": 0.5, "random_source": 0.2}
    found = judged(arms, guards=[guard("known", 0.01, None), guard("text", 0.01, 0.05)])
    assert [row["margin"] for row in found["guards"]] == pytest.approx([found["margin"], 0.05])


def test_a_guard_without_a_margin_is_not_tested():
    """And takes no part in the correction over the others."""
    arms = {"real_source": 0.5, "random_source": 0.2}
    found = judged(arms, source=0.0, guards=[guard("known", 0.0001, None), guard("text", 0.02, 0.05)])
    known, text = found["guards"]
    assert (known["p"], known["p_holm"], known["harmed"]) == (None, None, None)
    assert text["p_holm"] == pytest.approx(0.02)
    assert found["harm"] is True
    assert judged(arms, source=0.0, guards=[guard("known", 0.0001, None)])["harm"] is None
