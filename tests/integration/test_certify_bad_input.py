"""What can be wrong with a recipe's certificate ends in one line, before any weight is loaded, and writes nothing."""

from __future__ import annotations

import pytest

from pkt.models.lm import LM


@pytest.fixture
def refused(pkt, tmp_path, monkeypatch):
    """`refused(parts, recipe, *overrides)`: `pkt certify` refuses in one line that holds the parts."""

    def check(parts: list[str], recipe: object, *overrides: str) -> None:
        monkeypatch.setattr(LM, "_load", lambda lm: pytest.fail(f"{lm.name} was loaded"))
        out = tmp_path / "out"
        args = [part for override in overrides for part in ("--set", override)]
        done = pkt("certify", recipe, "--out", out, "--device", "cpu", "--workers", "1", *args)
        done.refuses(*parts)
        assert not out.exists()

    return check


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["certificate.arms=[random_sauce]"], ["certificate.arms: unknown arm 'random_sauce'", "'random_source'?"]),
        (["certificate.arms=[real_source]"], ["certificate.arms: real_source always runs"]),
        (["certificate.arms=random_source"], ["certificate.arms", "valid list"]),
        (["certificate.tier=old"], ["certificate.tier: nano/mmlu has no tier 'old'", "new"]),
        (["certificate.wrong_task=nano/mmlu"], ["certificate.wrong_task is 'nano/mmlu', the task itself"]),
        (["certificate.wrong_task=nano/mmlo"], ["unknown task 'nano/mmlo'", "did you mean 'nano/mmlu'?"]),
        (["certificate.guard_tasks=[nano/mmlo]"], ["unknown task 'nano/mmlo'", "did you mean 'nano/mmlu'?"]),
        (["certificate.seeds=1"], ["certificate.seeds: found 1", "greater than or equal to 2"]),
        (["certificate.factors=[1.0]"], ["certificate.factors", "at least 2"]),
        (["certificate.factors=[1.0, -3.0]"], ["certificate.factors.1: found -3.0", "greater than 0"]),
        (["certificate.learning_rates={reel_source: 0.1}"], ["certificate.learning_rates: unknown arm 'reel_source'"]),
        (["certificate.learning_rates=serch"], ["certificate.learning_rates", "found 'serch'"]),
        (["certificate.margin=0"], ["certificate.margin: found 0", "greater than 0"]),
        (["certificate.perplexity_margin=-1.0"], ["certificate.perplexity_margin", "greater than 0"]),
        (["certificate.level=0.4"], ["certificate.level: found 0.4", "greater than 0.5"]),
        (["certificate.level=1.0"], ["certificate.level: found 1.0", "less than 1"]),
        (["certificate.seed=3"], ["unknown key 'certificate.seed'", "did you mean 'seeds'?"]),
    ],
)
def test_sections(refused, overrides, parts):
    refused(parts, "nano_published", *overrides)


def test_a_guard_about_one_unit_is_refused_before_the_work(refused):
    """Two items per tier at this seed: both known ones are about one unit."""
    parts = ["certificate: the guard against harm", "tier known that are drawn are about 1 knowledge unit"]
    refused(parts, "nano_direct", "evaluate.seed=71", "evaluate.limit=2")


@pytest.mark.parametrize("rate", ["0", "-0.1"])
def test_given_rates_are_above_zero(refused, rate):
    refused(["certificate.learning_rates"], "nano_published", f"certificate.learning_rates={{no_source: {rate}}}")


@pytest.mark.parametrize("factors", ["[1.0, 1.0]", "[1.0, 1.00001]"])
def test_factors_are_distinct(refused, factors):
    refused(["certificate.factors"], "nano_published", f"certificate.factors={factors}")


@pytest.mark.parametrize("tasks", ["[nano/mmlu]", "[nano/mbpp, nano/mbpp]"])
def test_a_guard_task_is_another_task_and_stands_once(refused, tasks):
    refused(["certificate.guard_tasks"], "nano_published", f"certificate.guard_tasks={tasks}")


def test_items_drawn_are_about_two_units_at_least(refused):
    refused(["two at least"], "nano_published", "evaluate.limit=1")


def test_a_guard_text_has_two_windows_at_least(refused, tmp_path):
    """One window has no error that could be known."""
    text = tmp_path / "guard.txt"
    text.write_text("One short line.\n")
    refused(["perplexity_text"], "nano_published", f"evaluate.perplexity_text={text}", "evaluate.limit=4")
    text.write_text("\n")
    refused(["is empty; give a text, or leave it out"], "nano_published", f"evaluate.perplexity_text={text}")


def test_a_learning_rate_of_an_arm_that_is_not_run_is_told(pkt, recipe, tmp_path, caplog):
    asked = recipe(certificate={"learning_rates": {"random_source": 0.1, "no_source": 0.1}, "arms": ["no_source"]})
    done = pkt(
        "certify",
        asked,
        "--out",
        tmp_path / "out",
        "--dry-run",
        "--set",
        "task.name=nano/gsm8k",
        "--set",
        "task.data=null",
    )
    assert done.code == 0, done.err
    assert "learning_rates: not used, for these arms are not run: random_source" in caplog.text


def test_an_arm_that_is_not_to_be_had(refused, recipe):
    asked = recipe(certificate={"arms": ["wrong_task"]})
    refused(["certificate.arms: wrong_task is not to be had", "set certificate.wrong_task"], asked)


def test_no_valid_split(refused, recipe):
    refused(["gsm8k: split valid is empty; learning rates are chosen on it"], recipe())


def test_without_examples_to_choose_on_rates_can_be_given(pkt, recipe, tmp_path):
    """The valid split is for choosing: where nothing is chosen, it may be empty."""
    done = pkt(
        "certify", recipe(), "--out", tmp_path / "out", "--dry-run", "--set", "certificate.learning_rates=recipe"
    )
    assert done.code == 0, done.err
    assert "0 runs to choose learning rates" in done.out


def test_one_unit(refused, data, recipe):
    path = data / "test" / "gsm8k" / "test.jsonl"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    asked = recipe(task={"name": "gsm8k", "data": str(data), "prompt_style": "plain"})
    refused(["the test items of gsm8k that are drawn are about 1 knowledge unit", "two at least"], asked)


def test_a_folder_with_another_recipe(pkt, certified, monkeypatch):
    monkeypatch.setattr(LM, "_load", lambda lm: pytest.fail(f"{lm.name} was loaded"))
    before = {p: p.stat().st_mtime_ns for p in certified.rglob("*")}
    done = pkt("certify", "nano_published", "--out", certified)
    assert done.code == 2
    assert "holds the run of recipe 'small', not of 'nano_published'" in done.err
    assert {p: p.stat().st_mtime_ns for p in certified.rglob("*")} == before


def test_a_negative_number_of_workers(pkt, tmp_path):
    done = pkt("certify", "nano_published", "--out", tmp_path / "out", "--workers", "-1")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "--workers" in done.err
