"""From a recipe to `certificate.json`: all arms, learning rates and seeds, in an order that the folder shows.

1. Location runs once, on the real source and the target (and once more on another task, for `wrong_task`).
2. Every arm's learning rate is fixed by the valid split's loss: `arms/ARM/learning_rate.json`.
3. Only then is anything scored on test items: target, source, and every arm at every seed. `arms/order.jsonl` has the times.
4. The verdict is computed from the score files alone (`pkt.evidence`).
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from pkt.certify.arms import ARMS, REAL, check_names, missing
from pkt.certify.search import Search
from pkt.checks import check, check_gradable, check_locatable
from pkt.config import Recipe, TaskSection, validate
from pkt.errors import ConfigError, DataError, TrainingError
from pkt.files import locked, write_json, write_text
from pkt.jobs import Job, Jobs
from pkt.models.checkpoint import is_nano
from pkt.pool import Pool, cores
from pkt.run import Machine, Run
from pkt.tasks.base import Task, fingerprint

log = logging.getLogger(__name__)


class Certification:
    """The certificate of one run folder.

    Raises:
        ConfigError: the recipe's certificate section does not fit its task or method.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.cfg = run, run.recipe.certificate
        self.folder = run.folder / "arms"
        check_names(self.cfg.arms or [], "certificate.arms")
        if isinstance(self.cfg.learning_rates, dict):
            check_names(self.cfg.learning_rates, "certificate.learning_rates", real=True)

    @property
    def seeds(self) -> list[int]:
        return [self.run.recipe.seed + i for i in range(self.cfg.seeds)]

    @property
    def selection_seed(self) -> int:
        """Of the learning-rate searches: the first that is not scored."""
        return self.seeds[-1] + 1

    @cached_property
    def wrong_task(self) -> Task | None:
        """The task on which the arm of that name locates."""
        given, name = self.cfg.wrong_task, self.run.task.name
        if given is not None:
            found = self._task(given)
            if found.name == name:
                raise ConfigError(f"certificate.wrong_task is {name!r}, the task itself; name another")
            return found
        if not is_nano(name):
            return None
        from pkt.nano.world import TASKS

        names = [f"nano/{task}" for task in TASKS]
        return self._task(TaskSection(name=names[(names.index(name) + 1) % len(names)]))

    @cached_property
    def guard_tasks(self) -> list[Task]:
        """Other tasks on which harm is looked for."""
        return [self._task(section) for section in self.cfg.guard_tasks]

    def _task(self, section: TaskSection) -> Task:
        from pkt.tasks.sources import task

        data = self.run.recipe.task.data if section.data is None and not is_nano(section.name) else section.data
        found = task(section.name, data)
        return found.without_test_items() if section.drop_overlap else found

    @cached_property
    def absent(self) -> dict[str, str]:
        """Control arms that are not run, with the reason."""
        method, wanted = self.run.method, self.cfg.arms
        found = {}
        for arm in ARMS:
            if arm == REAL:
                continue
            reason = missing(method, arm, has_wrong_task=self.wrong_task is not None)
            if reason or (wanted is not None and arm not in wanted):
                found[arm] = reason or "left out by certificate.arms"
        return found

    @property
    def arms(self) -> list[str]:
        """The arms that are run, the real source first."""
        return [arm for arm in ARMS if arm not in self.absent]

    @cached_property
    def tier(self) -> str | None:
        """The tier of test items that decides; None means all items."""
        tiers = list(dict.fromkeys(e.tier for e in self.run.task.split("test") if e.tier))
        if self.cfg.tier is not None and self.cfg.tier not in tiers:
            raise ConfigError(
                f"certificate.tier: {self.run.task.name} has no tier {self.cfg.tier!r}; it has {', '.join(tiers) or 'none'}"
            )
        return self.cfg.tier or ("new" if "new" in tiers else None)

    def check(self) -> None:
        """Check everything that can be checked without weights; writes nothing."""
        run = self.run
        for arm in self.cfg.arms or []:
            if arm in self.absent:
                raise ConfigError(f"certificate.arms: {arm} is not to be had: {self.absent[arm]}")
        check(run)
        for task in (run.task, *self.guard_tasks):
            check_gradable(run, task)
        units = {e.unit for e in run.task.split("test") if self.tier in (None, e.tier)}
        if len(units) < 2:
            raise DataError(
                f"{run.task.name}: the test items of {self.tier or 'all tiers'} are about {len(units)} knowledge unit; intervals need "
                f"two at least: set certificate.tier, or add items"
            )
        if "wrong_task" in self.arms and self.wrong_task is not None:
            check_locatable(run, self.wrong_task.split("extract"))
        if run.method.learning_rate is not None:
            if not run.task.split("valid"):
                raise DataError(f"{run.task.name}: split valid is empty; learning rates are chosen on it")
            run.task.check_disjoint(*dict.fromkeys((*run.method.splits, "valid", "test")))

    def jobs(self) -> Jobs:
        """What this process can do for the certificate."""
        wrong = self.wrong_task.split("extract") if self.wrong_task is not None and "wrong_task" in self.arms else None
        return Jobs(self.run, wrong, self.guard_tasks, keep=self.cfg.keep_deltas)

    def make(self) -> dict[str, Any]:
        """Do what is missing, and write `certificate.json`."""
        from pkt.evidence import certificate

        start = time.perf_counter()
        self.locate()
        jobs, machine = self.jobs(), self.run.machine
        workers = machine.workers or automatic_workers(self.run)
        build = partial(_jobs, self.run.recipe.model_dump_json(), self.run.folder, machine)
        with Pool(build, Jobs.work, workers, max(1, cores() // workers)) as pool:
            rates = self._learning_rates(pool, jobs)
            runs = [Job("transfer", arm, rates[arm], seed) for seed in self.seeds for arm in self.arms]
            self._run(pool, jobs, [*runs, Job("model", "target"), Job("model", "source")])
        found = certificate(self)
        write_json(self.run.folder / "certificate.json", found)
        log.info("certificate: %.1f s", time.perf_counter() - start)
        return found

    def locate(self) -> None:
        """Scores of both models, once for all arms."""
        run = self.run
        if run.method.locate is None:
            return
        run.locate()
        if "wrong_task" in self.arms:
            assert self.wrong_task is not None
            run.locate_on("wrong_task", self.wrong_task.split("extract"))

    def _learning_rates(self, pool: Pool, jobs: Jobs) -> dict[str, float | None]:
        """Fix every arm's learning rate, by search where it is not given."""
        option, preset = self.run.method.learning_rate, self.cfg.learning_rates
        centre = getattr(self.run.options, option) if option else None
        given: dict[str, float | None] = {}
        origin: str | None = None
        if option is None or preset == "recipe":
            given, origin = dict.fromkeys(self.arms, centre), "recipe" if option else None
        elif isinstance(preset, dict):
            given, origin = {arm: lr for arm, lr in preset.items() if arm in self.arms}, "preset"
        searches = {arm: Search(float(centre or 0), self.cfg.factors) for arm in self.arms if arm not in given}
        while wanted := [Job("select", a, lr, self.selection_seed) for a, s in searches.items() for lr in s.wanted()]:
            for job, record in self._run(pool, jobs, wanted):
                loss = record["loss"]
                searches[job.arm].losses[job.lr or 0] = math.inf if loss is None else loss
        for arm in self.arms:
            self._fix(arm, given.get(arm), searches.get(arm), origin)
        return {arm: given[arm] if arm in given else searches[arm].best() for arm in self.arms}

    def _fix(self, arm: str, lr: float | None, search: Search | None, origin: str | None) -> None:
        """Write an arm's configuration, unless it stands there already."""
        curve = []
        if search is not None:
            lr, origin = search.best(), "search"
            if math.isinf(search.losses[lr]):
                raise TrainingError(
                    f"{arm}: training diverged at every learning rate from {min(search.losses):g} to {max(search.losses):g}; lower the "
                    f"method's learning rate or its initial scale"
                )
            curve = [
                {"lr": at, "loss": loss if math.isfinite(loss) else None} for at, loss in sorted(search.losses.items())
            ]
        record = {
            "arm": arm,
            "lr": lr,
            "lr_from": origin,
            "curve": curve,
            "at_edge": search is not None and search.at_edge(),
        }
        path = self.folder / arm / "learning_rate.json"
        if path.is_file() and json.loads(path.read_text(encoding="utf-8")) == record:
            return
        write_json(path, record)
        self._note("learning rate fixed", arm=arm, lr=lr)

    def _run(self, pool: Pool, jobs: Jobs, wanted: Sequence[Job]) -> list[tuple[Job, dict[str, Any]]]:
        """The records of jobs; those that are done already are not done again."""
        found = [(job, jobs.done(job)) for job in wanted]
        results = [(job, record) for job, record in found if record is not None]
        start = time.perf_counter()
        todo = [job for job, record in found if record is None]
        for i, (job, record) in enumerate(pool.run(todo)):
            if job.kind != "select":
                self._note(
                    "scored on test items", arm=job.arm, **({"seed": job.seed} if job.kind == "transfer" else {})
                )
            what = {"select": f"lr {job.lr or 0:g}", "transfer": f"seed {job.seed}", "model": "model"}[job.kind]
            log.info("%s, %s: %d of %d, %.0f s", job.arm, what, i + 1, len(todo), time.perf_counter() - start)
            results.append((job, record))
        return results

    def _note(self, event: str, **what: Any) -> None:
        """One line more in `arms/order.jsonl`."""
        path = self.folder / "order.jsonl"
        before = path.read_text(encoding="utf-8") if path.is_file() else ""
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **what}
        write_text(path, before + json.dumps(line) + "\n")

    def data(self) -> dict[str, str]:
        """Hashes of all examples that the certificate rests on."""
        run = self.run
        names = dict.fromkeys(
            (*run.method.splits, "valid", "test") if run.method.learning_rate else (*run.method.splits, "test")
        )
        found = {f"{run.task.name} {name}": fingerprint(run.task.split(name)) for name in names}
        found |= {f"{task.name} test": fingerprint(task.split("test")) for task in self.guard_tasks}
        if "wrong_task" in self.arms and self.wrong_task is not None:
            found[f"{self.wrong_task.name} extract"] = fingerprint(self.wrong_task.split("extract"))
        return found


def _jobs(recipe: str, folder: Path, machine: Machine) -> Jobs:
    """The jobs of a worker process."""
    run = Run(validate(Recipe, json.loads(recipe), "recipe"), folder, machine)
    return Certification(run).jobs()


def automatic_workers(run: Run) -> int:
    """One process on a GPU or with a device map; else one per core, as far as memory holds a target each."""
    import psutil

    if run.target.torch_device != "cpu" or run.machine.device not in ("auto", "cpu"):
        return 1
    each = 2 * 4 * run.target.parameters() + (1 << 30)
    return max(1, min(cores(), psutil.virtual_memory().available // each))


def certify(recipe: Recipe, folder: Path, machine: Machine | None = None) -> dict[str, Any]:
    """Make the certificate of a recipe in a run folder, with its report; what is there already is kept.

    Returns: the content of `certificate.json`.
    """
    from pkt.report.html import write
    from pkt.summary import write_summary

    run = Run(recipe, folder, machine)
    made = Certification(run)
    made.check()
    with locked(folder):
        run.start()
        found = made.make()
        write_summary(run)
        write(folder)
    return found
