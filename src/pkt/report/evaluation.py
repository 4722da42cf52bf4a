"""An evaluation as rows for a terminal: scores beside chance, and how they were asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pkt.report.numbers import plus_minus

GREEDY = "greedy"


def rows(evaluation: Mapping[str, Any]) -> list[dict[str, str]]:
    """One row per task and tier, per pass@k and per group of MMLU."""
    return [row for record in evaluation["tasks"] for row in _task_rows(record)]


def _task_rows(record: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    asked = asked_in_words(record["protocol"], is_ranked=record["is_ranked"])
    for score in record["scores"]:
        name = record["task"] if score["tier"] == "all" else f"{record['task']} {score['tier']}"
        passes = score.get("pass_at", [])
        if not passes:
            yield _row(name, score, score, asked)
        for at in passes:
            yield _row(f"{name} pass@{at['k']}", at, score, asked)
    for part in record["parts"]:
        if part["kind"] == "group":
            yield _row(
                f"{record['task']}: {part['name']}", part, {**part, "chance": record["scores"][-1]["chance"]}, ""
            )


def _row(name: str, value: Mapping[str, Any], of: Mapping[str, Any], asked: str) -> dict[str, str]:
    return {
        "task": name,
        "score": plus_minus(value["score"], value["standard_error"]),
        "chance": f"{of['chance']:.3f}" if of["chance"] else "about 0",
        "items": str(of["num_items"]),
        "asked": asked,
    }


def asked_in_words(protocol: Mapping[str, Any], *, is_ranked: bool) -> str:
    """Style, worked examples and how answers were drawn."""
    said = [protocol["style"], f"{protocol['shots']} shots"]
    if is_ranked:
        return ", ".join([*said, "ranked"])
    if not protocol["temperature"]:
        return ", ".join([*said, GREEDY])
    drawn = [f"temperature {protocol['temperature']:g}", f"top-p {protocol['top_p']:g}"]
    count = f"{protocol['samples']} sample{'s' if protocol['samples'] > 1 else ''}"
    return ", ".join([*said, count, *drawn])


def notes(evaluation: Mapping[str, Any]) -> list[str]:
    """The model, and what a reader should know of the items."""
    model = evaluation["model"]
    on = f" on {model['base']}" if "base" in model else ""
    found = [f"model: {model['name']} ({model['kind']}{on}), weights {model['weights'][:12]}, dtype {model['dtype']}"]
    for record in evaluation["tasks"]:
        protocol, said = record["protocol"], []
        if record["too_long"]:
            what = {"wrong": "counted as wrong", "cut": "cut at their beginning"}[protocol["too_long"]]
            said.append(f"{record['too_long']} prompts did not fit and were {what}")
        if record["fewer_shots"]:
            said.append(f"{record['fewer_shots']} had fewer worked examples, for their length")
        if record["dropped"]:
            said.append(f"{len(record['dropped'])} corrupt rows were dropped")
        if protocol["limit"]:
            said.append(f"{_drawn(record)} drawn by seed {protocol['seed']}")
        found += [f"note: {record['task']}: {'; '.join(said)}"] if said else []
    return found


def _drawn(record: Mapping[str, Any]) -> str:
    """How many items a limit left: of the nano world it holds for each tier."""
    (num_items,) = [score["num_items"] for score in record["scores"] if score["tier"] == "all"]
    return f"{num_items} item{'s' if num_items > 1 else ''}"
