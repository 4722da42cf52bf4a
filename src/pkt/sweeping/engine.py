"""A sweep as a whole: check every point, make what they share, run what is missing in parallel, write one table and one page.

1. All recipes of the grid are checked before anything runs.
2. Located scores, prepared answers, and the scores of target and source are made once for all runs that share them.
3. Every point runs at every seed in a folder of its own, as `pkt run` would; with `certify` every point is one certificate, which
   locates and scores by itself, so that it can be verified from its folder.
4. The table is computed from the folders alone. A run that failed stands in it with its message.

Parallel runs are those of `pkt.pool`. A sweep that was stopped goes on where it was: finished stages of all runs are kept.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pkt import memo_stages
from pkt.certification import Certification, automatic_workers
from pkt.checks import check
from pkt.config import Recipe
from pkt.errors import ConfigError, PktError
from pkt.files import leftovers, locked, write_json
from pkt.machine import Machine
from pkt.pool import Pool, cores
from pkt.run import Run
from pkt.sweeping.grid import Point, Scalar, Sweep, folder_name, load_sweep, points
from pkt.sweeping.jobs import SHARED, Job, Worker
from pkt.sweeping.table import NAME, costs, table

WRITTEN = ("costs.json", "sweep.csv", "sweep.html")
"""What is made beside the table."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Planned:
    """A run of a sweep: a point at a seed, or the certificate of a point."""

    point: Point
    recipe: Recipe
    folder: Path


def planned(sweep: Sweep, folder: Path, *, certify: bool) -> list[Planned]:
    """All runs, in the order of the grid."""
    found = []
    for point in points(sweep):
        at = folder / folder_name(point.name)
        if point.name == SHARED:
            raise ConfigError(f"a recipe named {SHARED!r} would take the place of what runs share; rename it")
        if certify:
            found.append(Planned(point, point.certified(sweep.seeds), at))
        else:
            found += [
                Planned(point, recipe, at / f"seed-{recipe.seed}")
                for recipe in map(point.seeded, range(sweep.seeds or 1))
            ]
    if certify:
        _check_seeds([one.recipe for one in found])
    return found


def _check_seeds(recipes: Sequence[Recipe]) -> None:
    """Raise ConfigError where certificates of one task and target have different numbers of seeds."""
    found: dict[tuple[str, str], set[int]] = {}
    for recipe in recipes:
        found.setdefault((recipe.task.name, recipe.target.name), set()).add(recipe.certificate.seeds)
    for (task, _), counts in found.items():
        if len(counts) > 1:
            raise ConfigError(
                f"certificates on {task} have {', '.join(map(str, sorted(counts)))} seeds, but points are compared seed by seed; say "
                f"--seeds {max(counts)}"
            )


def check_points(runs: Sequence[Planned], machine: Machine, *, certify: bool) -> dict[str, Run]:
    """Check the first run of every point as far as that can be done without weights; writes nothing.

    Raises:
        PktError: what is wrong, with the point's name.
    """
    found: dict[str, Run] = {}
    for one in runs:
        if one.point.name in found:
            continue
        try:
            run = Run(one.recipe, one.folder, machine)
            if certify:
                Certification(run).check()
            else:
                check(run)
                _ = Certification(run).tier  # decides what is best
        except PktError as e:
            raise type(e)(f"point {one.point.name}: {e}") from e
        found[one.point.name] = run
    return found


def run_sweep(sweep: Sweep, folder: Path, machine: Machine | None = None, *, certify: bool = False) -> dict[str, Any]:
    """Run a sweep in a folder; what is there already is kept.

    Returns: the content of `sweep.json`. Beside it are `sweep.csv`, `costs.json` and `sweep.html`.

    Raises:
        PktError: a recipe of the grid is wrong, or the folder holds something else.
    """
    from pkt.report.sweep_page import write

    machine = machine or Machine()
    check_folder(folder)
    runs = planned(sweep, folder, certify=certify)
    first = check_points(runs, machine, certify=certify)
    start = time.perf_counter()
    with locked(folder):
        for path in leftovers(folder):
            path.unlink()
        for name in (NAME, *WRITTEN):  # of a sweep with other runs, maybe
            (folder / name).unlink(missing_ok=True)
        errors = _work(sweep, runs, first, folder, machine, certify=certify)
        found = table(sweep, runs, errors, folder, certify=certify)
        write_json(folder / NAME, found)
        write_json(folder / "costs.json", costs(runs, errors, certify=certify))
        write(folder)
    log.info("sweep: %d runs, %d failed, %.1f s", len(runs), len(errors), time.perf_counter() - start)
    return found


def check_folder(folder: Path) -> None:
    """Raise ConfigError for a folder that holds something else."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; give a folder")
    if not folder.is_dir() or (folder / SHARED).is_dir() or (folder / NAME).is_file():
        return
    if set(folder.iterdir()) - set(leftovers(folder)):
        raise ConfigError(f"{folder} holds files but no sweep; give a new or empty folder")


def _work(
    sweep: Sweep, runs: Sequence[Planned], first: Mapping[str, Run], folder: Path, machine: Machine, *, certify: bool
) -> dict[Path, str]:
    """Do what is missing; messages by the folder of the run that failed."""
    (folder / SHARED).mkdir(exist_ok=True)
    start = time.perf_counter()
    workers = machine.workers or min(automatic_workers(run) for run in first.values())
    workers = max(1, min(workers, len(runs)))
    at_a_time = machine.execution.workers or max(1, cores() // workers)  # programs of one process
    machine = replace(machine, execution=replace(machine.execution, workers=at_a_time))
    kind = "certify" if certify else "run"
    jobs = [
        Job(kind, one.recipe.model_dump_json(), str(one.folder), str(one.folder.relative_to(folder))) for one in runs
    ]
    errors: dict[Path, str] = {}
    with Pool(partial(Worker, folder, machine), Worker.work, workers, max(1, cores() // workers)) as pool:
        if not certify:
            shared = _shared_jobs(runs, first)
            _run(pool, [job for job in shared if job.kind in ("locate", "prepare")], "shared stages", start)
            _run(pool, [job for job in shared if job.kind in ("target", "source")], "models to score", start)
        for job, error in _run(pool, jobs, "certificates" if certify else "runs", start):
            if error is not None:
                errors[Path(job.folder)] = error
    return errors


def _run(pool: Pool, jobs: Sequence[Job], what: str, start: float) -> list[tuple[Job, str | None]]:
    """Jobs with their errors, as they finish; seconds are told from `start` on."""
    found = []
    for i, (job, error) in enumerate(pool.run(jobs), 1):
        seconds = time.perf_counter() - start
        if error is None:
            log.info("%s, %s: %d of %d %s, %.0f s", job.label, job.kind, i, len(jobs), what, seconds)
        else:
            log.warning("%s, %s failed: %s", job.label, job.kind, error)
        found.append((job, error))
    return found


def _shared_jobs(runs: Sequence[Planned], first: Mapping[str, Run]) -> list[Job]:
    """What several runs read, once each: it is the same at all seeds of a point."""
    found: dict[str, Job] = {}
    for one in runs:
        run = first[one.point.name]
        if one.recipe.seed != run.recipe.seed:
            continue
        # the target is scored as the export is stored, which is not known beforehand for every dtype
        models = ("source", "target") if one.recipe.dtype == "float32" else ("source",)
        keys = memo_stages.keys(run) | {arm: run.scores_key(arm) for arm in models if arm in one.recipe.evaluate.arms}
        for kind, key in keys.items():
            label = f"for {one.point.name}"
            found.setdefault(key, Job(kind, one.recipe.model_dump_json(), str(one.folder), label, key))
    return list(found.values())


def sweep(
    recipes: str | Sequence[str],
    out: str | Path,
    *,
    over: Mapping[str, Sequence[Scalar]] | None = None,
    set: Sequence[str] = (),
    seeds: int | None = None,
    certify: bool = False,
    machine: Machine | None = None,
) -> dict[str, Any]:
    """Run a grid of recipes, or a sweep by name, and return the content of its `sweep.json`.

    Args:
        recipes: recipes, as files or shipped names; or one sweep. over: recipe key -> values. set: KEY=VALUE overrides of all.
        seeds: of every point. certify: make a certificate of every point.

    Raises:
        PktError: something of it is wrong. A run that fails is no error: it stands in the table.
    """
    names = [recipes] if isinstance(recipes, str) else list(recipes)
    return run_sweep(load_sweep(names, over, set, seeds), Path(out), machine, certify=certify)
