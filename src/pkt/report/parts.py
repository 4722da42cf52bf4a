"""What stands below the scores: pass@k of code, and MMLU by group, sub-category and subject."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pkt.report.numbers import plus_minus
from pkt.report.table import arm_names

Row = dict[str, str]

KINDS = ("group", "sub-category", "subject")


def pass_rows(summary: Mapping[str, Any]) -> list[Row]:
    """One row per model: pass@k over all test items."""
    rows = []
    for line in summary.get("scores", []):
        if line["tier"] == "all" and line.get("pass_at"):
            cells = {f"pass@{at['k']}": plus_minus(at["score"], at["standard_error"]) for at in line["pass_at"]}
            rows.append({"model": line["arm"], **cells})
    return rows


def part_rows(summary: Mapping[str, Any], kind: str) -> list[Row]:
    """One row per part of a kind, a column per model."""
    found: dict[str, Row] = {}
    lines = [line for line in summary.get("parts", []) if line["kind"] == kind]
    for line in lines:
        row = found.setdefault(line["name"], {kind: line["name"].replace("_", " "), "items": str(line["num_items"])})
        row[line["arm"]] = plus_minus(line["score"], line["standard_error"])
    arms = arm_names(summary)
    return [
        {kind: row[kind], **{arm: row.get(arm, "–") for arm in arms}, "items": row["items"]} for row in found.values()
    ]


def asked(summary: Mapping[str, Any]) -> str:
    """How the task was asked, in words; empty where the summary does not say."""
    protocol = summary.get("protocol")
    if not protocol:
        return ""
    shots, samples = protocol["shots"], protocol["samples"]
    said = [f"{shots} worked example{'s' * (shots != 1)}" if shots else "no worked examples"]
    if protocol["temperature"]:
        drawn = f"at temperature {protocol['temperature']:g}, top-p {protocol['top_p']:g}"
        said.append(f"{samples} sample{'s' * (samples != 1)} {drawn}")
    return f"Asked with {', '.join(said)}; version {protocol['version']} of the task."
