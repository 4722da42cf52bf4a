"""From a recipe to `certificate.json`: all arms, learning rates and seeds, in an order that the folder shows.

1. Location runs once, on the real source and the target (and once more on another task, for `wrong_task`).
2. Every arm's learning rate is fixed by the valid split's loss: `arms/ARM/learning_rate.json`.
3. Only then is anything scored on test items: target, source, and every arm at every seed. All records have their times.
4. The verdict is computed from the score files alone (`pkt.evidence`).
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from pkt.certificate_file import claim_arms
from pkt.certify.arms import ARMS, REAL, SOURCE_ARMS, check_names, missing
from pkt.certify.search import Search
from pkt.checks import check, check_gradable, check_locatable
from pkt.config import OtherTask, Recipe, validate
from pkt.errors import ConfigError, DataError, TrainingError
from pkt.evaluation.harness import draw
from pkt.evaluation.perplexity import WINDOW
from pkt.files import read_record, write_json
from pkt.jobs import Job, Jobs, now
from pkt.machine import Machine
from pkt.models.checkpoint import is_nano
from pkt.pool import Pool, cores
from pkt.run import Run
from pkt.tasks.base import UNLABELLED, Example, Task, fingerprint

log = logging.getLogger(__name__)

SELECTION = 1_000_000
"""What the selection seed is above the recipe's."""


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
            if run.method.learning_rate is None:
                raise ConfigError(f"certificate.learning_rates: {run.method.name} has no learning rate; leave it out")

    @property
    def seeds(self) -> list[int]:
        return [self.run.recipe.seed + i for i in range(self.cfg.seeds)]

    @property
    def selection_seed(self) -> int:
        """Of the learning-rate searches: one that is never scored, however many seeds there are."""
        return self.run.recipe.seed + SELECTION

    @cached_property
    def wrong_task(self) -> Task | None:
        """The task on which the arm of that name locates."""
        given, name = self.cfg.wrong_task, self.run.task.name
        if given is not None:
            found = self._task(given)
            if found.name == name:
                raise ConfigError(f"certificate.wrong_task is {name!r}, the task itself; name another")
            return self._as_few(found)
        if not is_nano(name):
            return None
        from pkt.nano.world import TASKS

        names = [f"nano/{task}" for task in TASKS]
        return self._as_few(self._task(OtherTask(name=names[(names.index(name) + 1) % len(names)])))

    def _as_few(self, task: Task) -> Task:
        """Another task with no more examples to locate on than this one has under `task.labels` and `task.extract`."""
        section = self.run.recipe.task
        if (section.labels is None and section.extract is None) or "extract" not in self.run.method.splits:
            return task
        return task.first({"extract": len(self.run.task.split("extract"))})

    @cached_property
    def guard_tasks(self) -> list[Task]:
        """Other tasks on which harm is looked for."""
        return [self._task(section) for section in self.cfg.guard_tasks]

    def _task(self, section: OtherTask) -> Task:
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
            reason = missing(method, self.run.options, arm, has_wrong_task=self.wrong_task is not None)
            if reason or (wanted is not None and arm not in wanted):
                found[arm] = reason or "left out by certificate.arms"
        return found

    @property
    def left_out(self) -> list[str]:
        """Source arms that the method has and the recipe leaves out."""
        return [
            arm
            for arm in self.absent
            if arm in SOURCE_ARMS and missing(self.run.method, self.run.options, arm, has_wrong_task=True) is None
        ]

    @property
    def searched(self) -> list[str]:
        """The arms whose learning rate is searched."""
        preset = self.cfg.learning_rates
        if self.run.method.learning_rate is None or preset == "recipe":
            return []
        return [arm for arm in self.arms if preset == "search" or arm not in preset]

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
        if isinstance(self.cfg.learning_rates, dict) and (
            idle := [arm for arm in self.cfg.learning_rates if arm not in self.arms]
        ):
            log.warning("certificate.learning_rates: not used, for these arms are not run: %s", ", ".join(idle))
        check(run)
        if run.method.reads_source and not any(arm in SOURCE_ARMS for arm in self.arms):
            log.warning("no source arm: neither transfer nor tuning can be found")
        for task in (run.task, *self.guard_tasks):
            check_gradable(run, task)
        text = run.guard_text()
        if text and len(run.target.tokenizer(text, verbose=False)["input_ids"]) <= min(WINDOW, run.target.dims.context):
            raise DataError(
                f"evaluate.perplexity_text: {run.recipe.evaluate.perplexity_text} has less than two windows of {WINDOW} tokens; intervals "
                f"need two at least: give a longer text"
            )
        names = [run.task.name, *(task.name for task in self.guard_tasks)]
        if len(set(names)) < len(names):
            raise ConfigError(
                f"certificate.guard_tasks: {', '.join(names[1:])}: name other tasks than {names[0]}, each once"
            )
        self._check_units(run.task, self.tier, "certificate.tier")
        for task in (run.task, *self.guard_tasks):
            if "known" in {e.tier for e in self._drawn(task)}:
                self._check_units(task, "known", "certificate: the guard against harm")
            elif task is not run.task:
                self._check_units(task, None, "certificate.guard_tasks")
        if not is_nano(run.task.name) and not self.guard_tasks and run.guard_text() is None:
            log.warning(
                "no guard against harm: name other tasks in certificate.guard_tasks, or evaluate.perplexity_text"
            )
        if "wrong_task" in self.arms and self.wrong_task is not None:
            check_locatable(run, run.task.located_with(self.wrong_task.split("extract")))
        if "shuffled_source" in self.arms and getattr(run.options, UNLABELLED, 0) == 1:
            raise DataError(
                "method.unlabelled is 1, but shuffled_source exchanges answers between prompts; use two at least, or leave that arm out"
            )
        if self.searched:
            if not run.task.split("valid"):
                raise DataError(f"{run.task.name}: split valid is empty; learning rates are chosen on it")
            run.task.check_disjoint(*dict.fromkeys((*run.method.reads(run.options), "valid", "test")))

    def _drawn(self, task: Task) -> list[Example]:
        """The test items that are scored."""
        return draw(task.split("test"), self.run.recipe.evaluate.limit, self.run.recipe.scoring_seed)

    def _check_units(self, task: Task, tier: str | None, where: str) -> None:
        units = {e.unit for e in self._drawn(task) if tier in (None, e.tier)}
        if len(units) < 2:
            raise DataError(
                f"{where}: the test items of {task.name}{f', tier {tier}' if tier else ''} that are drawn are about {len(units)} knowledge "
                f"unit; intervals need two at least: raise evaluate.limit, or choose other items"
            )

    def jobs(self) -> Jobs:
        """What this process can do for the certificate."""
        wrong = self.wrong_task.split("extract") if self.wrong_task is not None and "wrong_task" in self.arms else None
        return Jobs(self.run, wrong, self.guard_tasks, keep=self.cfg.keep_deltas)

    def make(self) -> None:
        """Do what is missing."""
        self.locate()
        jobs, machine = self.jobs(), self.run.machine
        claim_arms(self.run, jobs.others())
        workers = machine.workers or automatic_workers(self.run)
        at_a_time = machine.execution.workers or max(1, cores() // workers)  # programs of one process
        machine = replace(machine, execution=replace(machine.execution, workers=at_a_time))
        build = partial(_jobs, self.run.recipe.model_dump_json(), self.run.folder, machine)
        with Pool(build, Jobs.work, workers, max(1, cores() // workers)) as pool:
            rates = self._learning_rates(pool, jobs)
            runs = [Job("transfer", arm, rates[arm], seed) for seed in self.seeds for arm in self.arms]
            self._run(pool, jobs, [*runs, Job("model", "target"), Job("model", "source")])

    def locate(self) -> None:
        """Scores of both models, once for all arms."""
        run = self.run
        run.prepare()
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
        origin = None if option is None else "recipe" if preset == "recipe" else "preset"
        rates = preset if isinstance(preset, dict) else {}
        searches = {arm: Search(float(centre or 0), self.cfg.factors) for arm in self.searched}
        while wanted := [Job("select", a, lr, self.selection_seed) for a, s in searches.items() for lr in s.wanted()]:
            for job, record in self._run(pool, jobs, wanted):
                loss = record["loss"]
                searches[job.arm].losses[job.lr or 0] = math.inf if loss is None else loss
        return {arm: self._fix(arm, rates.get(arm, centre), origin, searches.get(arm)) for arm in self.arms}

    def _fix(self, arm: str, lr: float | None, origin: str | None, search: Search | None) -> float | None:
        """Write down an arm's learning rate, with the time at which it became what it is."""
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
        path = self.folder / arm / "learning_rate.json"
        before = read_record(path)
        fixed = before["fixed"] if before.get("lr") == lr and "fixed" in before else now()
        at_edge = search is not None and search.at_edge()
        record = {"arm": arm, "lr": lr, "lr_from": origin, "curve": curve, "at_edge": at_edge, "fixed": fixed}
        if record != before:
            write_json(path, record)
        return lr

    def _run(self, pool: Pool, jobs: Jobs, wanted: Sequence[Job]) -> list[tuple[Job, dict[str, Any]]]:
        """The records of jobs; those that are done already are not done again."""
        found = [(job, jobs.done(job)) for job in wanted]
        results = [(job, record) for job, record in found if record is not None]
        start = time.perf_counter()
        todo = [job for job, record in found if record is None]
        if todo:
            what = "learning rates to try" if todo[0].kind == "select" else "runs and models to score"
            log.info("%d %s, %d done before", len(todo), what, len(results))
        for i, (job, record) in enumerate(pool.run(todo)):
            what = {"select": f"lr {job.lr or 0:g}", "transfer": f"seed {job.seed}", "model": "model"}[job.kind]
            log.info("%s, %s: %d of %d, %.0f s", job.arm, what, i + 1, len(todo), time.perf_counter() - start)
            results.append((job, record))
        return results

    def data(self) -> dict[str, str]:
        """Hashes of all examples that the certificate rests on."""
        run = self.run
        names = dict.fromkeys((*run.method.reads(run.options), *(["valid"] if self.searched else []), "test"))
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
    each = 8 * max(run.source.parameters(), run.target.parameters()) + (1 << 30)
    if run.method.trains_copy:  # weights, gradients and two averages of each, and a source that is asked
        each = 20 * run.target.parameters() + 8 * run.source.parameters() + (1 << 30)
    return max(1, min(cores(), psutil.virtual_memory().available // each))
