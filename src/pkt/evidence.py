"""A certificate from the files of a run folder: scores, learning rates and records, as `pkt certify` left them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pkt.certify.arms import ARMS, REAL, kind
from pkt.certify.certificate import Evidence, Guard, judge
from pkt.errors import DataError
from pkt.jobs import GUARD_TEXT, Job
from pkt.models.checkpoint import file_digest

if TYPE_CHECKING:
    from pkt.certification import Certification

FORMAT = "certificate 1"
Line = dict[str, Any]


def certificate(made: Certification) -> dict[str, Any]:
    """The content of `certificate.json`, computed from the folder.

    Raises:
        DataError: a file is missing or does not fit the others.
    """
    from pkt.environment import code

    run, cfg = made.run, made.cfg
    found = evidence(made)
    arms = [_arm(made, arm) for arm in ARMS]
    for row in arms:
        if row["seed_scores"]:
            row["seed_scores"] = found.arms[row["arm"]].mean(1).tolist()
            row["score"] = float(found.arms[row["arm"]].mean())
    return {
        "format": FORMAT,
        "name": run.recipe.name,
        "method": run.method.name,
        "task": run.task.name,
        "source": {"name": run.source.name, "weights": run.source.digest},
        "target": {"name": run.target.name, "weights": run.target.digest},
        **judge(found, margin=cfg.margin, level=cfg.level, reads_source=run.method.reads_source),
        "items": {"tier": made.tier or "all", "num_items": len(found.units), "num_units": len(set(found.units))},
        "seeds": made.seeds,
        "selection_seed": made.selection_seed,
        "arms": arms,
        "seconds": round(sum(row["seconds"] for row in arms), 1),
        "hashes": {
            "recipe": run.certified_key(),
            "data": made.data(),
            "scores": {arm: file_digest(_scores_path(made, arm)) for arm in ("target", "source")},
        },
        "code": code(),
    }


def evidence(made: Certification) -> Evidence:
    """The scores that decide, and those of the guards.

    Raises:
        DataError: an arm was not scored on the items of the target.
    """
    target = read_lines(_scores_path(made, "target"))
    main = made.run.task.name

    def decides(line: Line) -> bool:
        return line["task"] == main and made.tier in (None, line["tier"])

    order = [_item(line) for line in target]
    items = [line for line in target if decides(line)]

    def scores(path: Path, keep: Callable[[Line], bool]) -> np.ndarray:
        by_item = {_item(line): line["score"] for line in read_lines(path) if keep(line)}
        wanted = [_item(line) for line in target if keep(line)]
        if list(by_item) != wanted:
            raise DataError(
                f"{path}: holds other items than the target's scores; delete {path.with_suffix('.json')} and run `pkt certify` again"
            )
        return np.array([by_item[item] for item in wanted])

    def of_seeds(arm: str, keep: Callable[[Line], bool]) -> np.ndarray:
        return np.stack([scores(_scores_path(made, arm, seed), keep) for seed in made.seeds])

    assert len(set(order)) == len(order)
    guards = [
        Guard(
            name,
            unit,
            np.array([line["score"] for line in target if keep(line)]),
            of_seeds(REAL, keep),
            [line["unit"] for line in target if keep(line)],
            [line.get("weight", 1.0) for line in target if keep(line)],
            margin,
        )
        for name, unit, keep, margin in _guards(made, target)
    ]
    return Evidence(
        np.array([line["score"] for line in items]),
        scores(_scores_path(made, "source"), decides),
        {arm: of_seeds(arm, decides) for arm in made.arms},
        [line["unit"] for line in items],
        guards,
    )


def _guards(made: Certification, target: list[Line]) -> list[tuple[str, str, Callable[[Line], bool], float | None]]:
    """Name, unit, lines and margin of every guard that was scored."""
    main = made.run.task.name
    found: list[tuple[str, str, Callable[[Line], bool], float | None]] = []
    if made.tier != "known" and any(line["tier"] == "known" for line in target if line["task"] == main):
        found.append(("known", "score", lambda line: line["task"] == main and line["tier"] == "known", None))
    for name in dict.fromkeys(line["task"] for line in target):
        if name == GUARD_TEXT:
            found.append((name, "nats per token", lambda line: line["task"] == GUARD_TEXT, made.cfg.perplexity_margin))
        elif name != main:
            found.append((name, "score", lambda line, name=name: line["task"] == name, None))  # type: ignore[misc]
    return found


def _arm(made: Certification, arm: str) -> dict[str, Any]:
    """What was done for an arm, from its records; or why it was not."""
    row: dict[str, Any] = {"arm": arm, "kind": kind(arm), "what": ARMS[arm], "reason": made.absent.get(arm)}
    if arm in made.absent:
        return row | {
            "lr": None,
            "lr_from": None,
            "curve": [],
            "at_edge": False,
            "trained_parameters": None,
            "score": None,
            "seed_scores": [],
            "seconds": 0.0,
            "peak_memory_gib": None,
        }
    fixed = made.folder / arm / "learning_rate.json"
    rate = json.loads(fixed.read_text(encoding="utf-8"))
    records = [_record(made, Job("transfer", arm, rate["lr"], seed)) for seed in made.seeds]
    tried = [_record(made, Job("select", arm, point["lr"], made.selection_seed)) for point in rate["curve"]]
    return row | {
        **{key: rate[key] for key in ("lr", "lr_from", "curve", "at_edge")},
        "trained_parameters": records[0]["trained_parameters"],
        "seed_scores": made.seeds,
        "seconds": round(sum(r["seconds"] for r in [*records, *tried]), 1),
        "peak_memory_gib": max(r["peak_memory_gib"] for r in [*records, *tried]),
        "hashes": {
            "learning_rate": file_digest(fixed),
            "deltas": [r["delta"] for r in records],
            "scores": [file_digest(_scores_path(made, arm, seed)) for seed in made.seeds],
        },
    }


def _record(made: Certification, job: Job) -> dict[str, Any]:
    path = job.path(made.folder)
    if not path.is_file():
        raise DataError(f"{path}: no such record; run `pkt certify` again, what is done is kept")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _scores_path(made: Certification, arm: str, seed: int | None = None) -> Path:
    job = Job("model", arm) if seed is None else Job("transfer", arm, None, seed)
    return job.path(made.folder).with_suffix(".jsonl")


def read_lines(path: Path) -> list[Line]:
    """The lines of a JSONL file.

    Raises:
        DataError: it is missing or damaged.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; run `pkt certify` again, what is done is kept")
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except ValueError:
        raise DataError(f"{path}: damaged; run `pkt certify` again, what is done is kept") from None


def _item(line: Line) -> tuple[str, str]:
    return line["task"], line["id"]
