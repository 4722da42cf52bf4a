"""`contamination.json` of a run folder: written once, in log, summary and report; not for nano tasks."""

from __future__ import annotations

import json

import pytest
from run_folders import message_row, write_lines

from pkt.overlap import FILE


@pytest.fixture
def overlapping(data):
    """Splits of which one row asks what test asks, but for signs; and another task's test set beside."""
    rows = [message_row("flurbs", 1), message_row("BLICKS –", 2)]
    write_lines(data / "splits" / "gsm8k" / "extract.jsonl", rows)
    row = {
        "messages": [{"role": "user", "content": "Answer the following question.\n\nQuestion: How much are 2 zorps?"}]
    }
    row["messages"].append({"role": "assistant", "content": "Answer: So the answer is 14."})
    write_lines(data / "splits" / "gsm8k" / "align.jsonl", [row, message_row("zorps", 3)])
    problem = {"problem": "How much are 2 zorps?", "solution": "\\boxed{14}", "level": "Level 1", "type": "Algebra"}
    write_lines(data / "test" / "math" / "test.jsonl", [problem])
    return data


def section(data) -> dict:
    return {"name": "gsm8k", "data": str(data), "prompt_style": "plain"}


def test_a_run_says_what_its_splits_share_with_test_sets(pkt, recipe, overlapping, tmp_path, caplog):
    out = tmp_path / "out"
    path = recipe(task=section(overlapping))
    result = pkt("run", path, "--out", out)
    assert result.code == 0, result.err
    found = json.loads((out / FILE).read_text())
    assert found["task"] == "gsm8k"
    assert [(row["split"], row["test"], row["exact"], row["normalised"]) for row in found["overlaps"]] == [
        ("extract", "gsm8k", 0, 1),
        ("align", "gsm8k", 0, 0),
        ("train", "gsm8k", 0, 0),
        ("valid", "gsm8k", 0, 0),
        ("extract", "math", 0, 0),
        ("align", "math", 1, 1),
        ("train", "math", 0, 0),
        ("valid", "math", 0, 0),
    ]
    lines = [
        "rows that are items of gsm8k: extract 1 of 2; contamination.json lists them",
        "rows that are items of math: align 1 of 2; contamination.json lists them",
    ]
    assert json.loads((out / "summary.json").read_text())["warnings"][:2] == lines
    report = (out / "report.html").read_text()
    assert all(line in report for line in lines)
    assert "overlap of gsm8k with test sets (gsm8k, math): rows that are items of gsm8k: extract 1 of 2" in caplog.text
    assert f"note: {lines[0]}" in result.out

    before = (out / FILE).stat().st_mtime_ns
    pkt("run", path, "--out", out)
    assert "overlap: already done" in caplog.text
    assert (out / FILE).stat().st_mtime_ns == before
    (overlapping / "test" / "math" / "test.jsonl").unlink()
    assert pkt("run", path, "--out", out).code == 0
    assert {row["test"] for row in json.loads((out / FILE).read_text())["overlaps"]} == {"gsm8k"}, (
        "other data, made anew"
    )


def test_what_is_dropped_on_request_is_taken_down(pkt, recipe, overlapping, tmp_path):
    out = tmp_path / "out"
    result = pkt("run", recipe(task=section(overlapping) | {"drop_overlap": True}), "--out", out)
    assert result.code == 0, result.err
    found = json.loads((out / FILE).read_text())
    assert [row["normalised"] for row in found["overlaps"] if row["test"] == "gsm8k"] == [0, 0, 0, 0]
    (row,) = found["dropped"]
    assert (row["where"], row["id"], row["like"]) == ("extract", "gsm8k/extract.jsonl:2", "gsm8k/test.jsonl:2")
    assert row["reason"] == "a test item of gsm8k: question, normalised"
    warnings = json.loads((out / "summary.json").read_text())["warnings"]
    assert "rows left out of the data: gsm8k/extract.jsonl:2; contamination.json says why" in warnings


def test_a_task_without_overlap_has_no_warning(pkt, recipe, data, tmp_path, caplog):
    out = tmp_path / "out"
    assert pkt("run", recipe(task=section(data)), "--out", out).code == 0
    assert "overlap of gsm8k with test sets (gsm8k): none" in caplog.text
    assert not any("items of" in line for line in json.loads((out / "summary.json").read_text())["warnings"])
    assert (out / FILE).is_file()


def test_nano_tasks_have_none(pkt, recipe, tmp_path):
    out = tmp_path / "out"
    assert pkt("locate", recipe(task={"name": "nano/gsm8k", "prompt_style": "plain"}), "--out", out).code == 0
    assert not (out / FILE).exists()
    assert "overlap" not in json.loads((out / "stages.json").read_text())
