"""A certificate: what `pkt certify` left in a run folder is read, judged and written to `certificate.json`."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from pkt import memo_stages
from pkt.certification import Certification
from pkt.certify.arms import ARMS, REAL, kind
from pkt.certify.certificate import Evidence, Guard, judge
from pkt.config import Recipe
from pkt.environment import code
from pkt.errors import DataError
from pkt.files import locked, read_record, write_json
from pkt.jobs import EFFORT, GUARD_TEXT, Job
from pkt.machine import Machine
from pkt.models.checkpoint import file_digest
from pkt.models.lm import LM
from pkt.run import Run

log = logging.getLogger(__name__)

FORMAT = "certificate 1"
Line = dict[str, Any]
Keep = Callable[[Line], bool]


def certify(recipe: Recipe, folder: Path, machine: Machine | None = None) -> dict[str, Any]:
    """Make the certificate of a recipe in a run folder, with its report; what is there already is kept.

    Returns: the content of `certificate.json`.
    """
    from pkt.report.html import write
    from pkt.summary import write_summary

    start = time.perf_counter()
    run = Run(recipe, folder, machine)
    made = Certification(run)
    made.check()
    with locked(folder):
        run.start()
        made.make()
        found = certificate(made)
        write_json(folder / "certificate.json", found)
        write_summary(run)
        write(folder)
    log.info("certificate: %.1f s", time.perf_counter() - start)
    return found


def certificate(made: Certification) -> dict[str, Any]:
    """The content of `certificate.json`, computed from the folder.

    Raises:
        DataError: a file is missing or does not fit the others.
    """
    run, cfg = made.run, made.cfg
    found = evidence(made)
    arms = [_arm(made, arm, found) if arm in made.arms else _absent(arm, made.absent[arm]) for arm in ARMS]
    judged = judge(
        found,
        margin=cfg.margin,
        level=cfg.level,
        reads_source=run.method.reads_source,
        reservations=[
            *(f"{arm} was left out" for arm in made.left_out),
            *(f"the learning rate of {row['arm']} is at the edge of what was tried" for row in arms if row["at_edge"]),
        ],
    )
    records = [record for row in arms for record in _records(made, row)]
    return {
        "format": FORMAT,
        "name": run.recipe.name,
        "method": run.method.name,
        "task": run.task.name,
        "source": _model(run.source),
        "target": _model(run.target),
        **judged,
        "items": {"tier": made.tier or "all", "num_items": len(found.units), "num_units": len(set(found.units))},
        "seeds": made.seeds,
        "selection_seed": made.selection_seed,
        "arms": arms,
        "seconds": round(sum(row["seconds"] for row in arms), 1),
        "hashes": {
            "recipe": run.certified_key(),
            "data": made.data(),
            "location": memo_digests(run, {name for record in records for name in record.get("memo", [])}),
            "scores": {arm: file_digest(scores_path(made, arm)) for arm in ("target", "source")},
        },
        "code": {**code(), "sources": sorted({record["sources"] for record in records})},
    }


def memo_digests(run: Run, names: Collection[str]) -> dict[str, str]:
    """Hashes of what location, preparation and the arms read in the memo, as far as it is there; `names` are those of the arms."""
    paths = {*memo_stages.files(run), *(run.memo / name for name in names if Path(name).name == name)}
    return {path.name: file_digest(path) for path in sorted(paths) if path.is_file()}


def _model(lm: LM) -> dict[str, str]:
    weights, tokenizer = lm.identity
    return {"name": lm.name, "weights": weights, "tokenizer": tokenizer}


def evidence(made: Certification) -> Evidence:
    """The scores that decide, and those of the guards.

    Raises:
        DataError: an arm was not scored on the items of the target.
    """
    target = read_lines(scores_path(made, "target"))
    decides = _of(made.run.task.name, made.tier)
    items = [line for line in target if decides(line)]

    def scores(path: Path, keep: Keep) -> np.ndarray:
        by_item = {_item(line): line["score"] for line in read_lines(path) if keep(line)}
        wanted = [_item(line) for line in target if keep(line)]
        if list(by_item) != wanted:
            raise DataError(
                f"{path}: holds other items than the target's scores; delete {path.with_suffix('.json')} and run `pkt certify` again"
            )
        return np.array([by_item[item] for item in wanted])

    def of_seeds(arm: str, keep: Keep) -> np.ndarray:
        return np.stack([scores(scores_path(made, arm, seed), keep) for seed in made.seeds])

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
        scores(scores_path(made, "source"), decides),
        {arm: of_seeds(arm, decides) for arm in made.arms},
        [line["unit"] for line in items],
        guards,
    )


def _guards(made: Certification, target: list[Line]) -> list[tuple[str, str, Keep, float | None]]:
    """Name, unit, lines and margin of every guard that was scored."""
    main = made.run.task.name
    found: list[tuple[str, str, Keep, float | None]] = []
    if made.tier != "known" and any(line["tier"] == "known" for line in target if line["task"] == main):
        found.append(("known", "score", _of(main, "known"), None))
    for name in dict.fromkeys(line["task"] for line in target):
        if name == GUARD_TEXT:
            found.append((name, "nats per token", _of(name, None), made.cfg.perplexity_margin))
        elif name != main:
            tiers = {line["tier"] for line in target if line["task"] == name}
            found.append((name, "score", _of(name, "known" if "known" in tiers else None), None))
    return found


def _of(task: str, tier: str | None) -> Keep:
    """Lines of a task, and of one of its tiers."""
    return lambda line: line["task"] == task and tier in (None, line["tier"])


def _arm(made: Certification, arm: str, found: Evidence) -> dict[str, Any]:
    """What was done for an arm, from its records."""
    path = made.folder / arm / "learning_rate.json"
    rate = read_record(path)
    if not rate:
        raise DataError(f"{path}: missing or damaged; run `pkt certify` again, what is done is kept")
    row = {"arm": arm, "kind": kind(arm), "what": ARMS[arm], "reason": None}
    row |= {key: rate[key] for key in ("lr", "lr_from", "curve", "at_edge")}
    records = _records(made, row)
    runs = records[: len(made.seeds)]
    return row | {
        **{key: runs[0].get(key) for key in EFFORT},
        **{key: _mean([r.get(key) for r in runs]) for key in ("flop", "delta_seconds")},
        "score": float(found.arms[arm].mean()),
        "seed_scores": found.arms[arm].mean(1).tolist(),
        "seconds": round(sum(r["seconds"] for r in records), 1),
        "peak_memory_gib": max(r["peak_memory_gib"] for r in records),
        "hashes": {
            "learning_rate": file_digest(path),
            "deltas": [r["delta"] for r in runs],
            "scores": [file_digest(scores_path(made, arm, seed)) for seed in made.seeds],
        },
    }


def _mean(values: list[float | None]) -> float | None:
    """Of values that are all there."""
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known), 3) if known and len(known) == len(values) else None


def _absent(arm: str, reason: str) -> dict[str, Any]:
    """An arm that was not run."""
    return {
        "arm": arm,
        "kind": kind(arm),
        "what": ARMS[arm],
        "reason": reason,
        "lr": None,
        "lr_from": None,
        "curve": [],
        "at_edge": False,
        **dict.fromkeys((*EFFORT, "flop", "delta_seconds")),
        "score": None,
        "seed_scores": [],
        "seconds": 0.0,
        "peak_memory_gib": None,
    }


def _records(made: Certification, row: dict[str, Any]) -> list[dict[str, Any]]:
    """The records of an arm: of its seeds, then of the learning rates that were tried."""
    if row["reason"] is not None:
        return []
    return [_record(made, job) for job in jobs_of(made, row)]


def jobs_of(made: Certification, row: dict[str, Any]) -> list[Job]:
    """The jobs behind an arm's row of the certificate."""
    runs = [Job("transfer", row["arm"], row["lr"], seed) for seed in made.seeds]
    return [*runs, *(Job("select", row["arm"], point["lr"], made.selection_seed) for point in row["curve"])]


def _record(made: Certification, job: Job) -> dict[str, Any]:
    path = job.path(made.folder)
    found = read_record(path)
    if not found:
        raise DataError(f"{path}: missing or damaged; run `pkt certify` again, what is done is kept")
    return found


def scores_path(made: Certification, arm: str, seed: int | None = None) -> Path:
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
