"""From a recipe to a run folder, in stages that continue where an earlier run stopped."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from pkt import memo_stages
from pkt.certificate_file import disown
from pkt.config import Recipe, validate
from pkt.environment import environment
from pkt.errors import ConfigError, DataError
from pkt.files import leftovers, read_record, write_json, write_text
from pkt.finished import align_key, forget_others, inject_key
from pkt.inject.delta import Delta
from pkt.machine import Machine
from pkt.memo import remembered_value
from pkt.methods import method_of
from pkt.models.checkpoint import file_digest, is_nano
from pkt.models.lm import LM
from pkt.overlap import record_overlap
from pkt.processes import num_processes, told_by_first
from pkt.protocols import asking, protocol_of, unset
from pkt.scores import Scores
from pkt.stages import Stages, key_of
from pkt.strict_yaml import read_yaml_file
from pkt.tasks.base import Example, Task, fingerprint

log = logging.getLogger(__name__)


class Run:
    """One recipe in one folder.

    Args:
        memo: folder of what was computed on the models, where several runs share it; None means the run's own `neurons/`. Runs that
            share it share the scores of target and source too.

    Raises:
        ConfigError: the recipe is wrong, or the folder holds the run of another recipe.
    """

    def __init__(self, recipe: Recipe, folder: Path, machine: Machine | None = None, memo: Path | None = None) -> None:
        self.folder, self.machine = folder, machine or Machine()
        self.method, self.options = method_of(recipe)
        resolved = {"name": recipe.method["name"], **self.options.model_dump()}
        self.recipe = recipe.with_absolute_paths().model_copy(update={"method": resolved})
        self.stages, self.scores = Stages(folder), Scores(folder)
        self.memo, self.is_shared = memo or folder / "neurons", memo is not None
        self._check_folder()

    @staticmethod
    def resume(folder: Path, machine: Machine | None = None) -> Run:
        """The run that `folder` already holds.

        Raises:
            DataError: there is none.
        """
        path = folder / "recipe.yaml"
        if not path.is_file():
            raise DataError(
                f"{folder}: no recipe.yaml in it; give a run folder, or start one with `pkt run` or `pkt locate RECIPE --out DIR`"
            )
        return Run(validate(Recipe, read_yaml_file(path), str(path)), folder, machine)

    def _check_folder(self) -> None:
        path = self.folder / "recipe.yaml"
        for place in (self.folder, *self.folder.parents):
            if place.exists() and not place.is_dir():
                raise ConfigError(f"{place} is a file; give a folder")
        if not path.is_file():
            if self.folder.is_dir() and set(self.folder.iterdir()) - set(leftovers(self.folder)):
                raise ConfigError(f"{self.folder} holds files but no run; give a new or empty folder")
            return
        other = read_yaml_file(path)
        name = other.get("name") if isinstance(other, dict) else None
        if name != self.recipe.name:
            raise ConfigError(
                f"{self.folder} holds the run of recipe {name!r}, not of {self.recipe.name!r}; give another folder"
            )

    @cached_property
    def source(self) -> LM:
        return self._lm(self.recipe.source.name, self.recipe.source.revision, self.recipe.dtype)

    @cached_property
    def target(self) -> LM:
        return self._lm(self.recipe.target.name, self.recipe.target.revision, self.recipe.dtype)

    def _scored(self, arm: str) -> LM:
        """The model of an arm as it is scored.

        Target and result in one dtype, that of the export: a recipe's narrower dtype would round once more what was
        exported, and two dtypes would mix the delta with a change of precision. float32 holds every export.
        """
        if arm == "source":
            return self.source
        dtype = self.recipe.dtype
        if dtype != "float32":
            dtype = read_record(self.folder / "export.json").get("dtype", dtype)
        if arm == "result":
            return self._lm(str((self.folder / "model").absolute()), None, dtype)
        return self._lm(self.recipe.target.name, self.recipe.target.revision, dtype)

    def _lm(self, name: str, revision: str | None, dtype: str) -> LM:
        return LM(name, revision=revision, device=self.machine.device, dtype=dtype, memo=self.memo)

    @cached_property
    def task(self) -> Task:
        from pkt.tasks.sources import task

        found = task(self.recipe.task.name, self.recipe.task.data)
        if self.recipe.task.drop_overlap:
            found = found.without_test_items()
        if self.recipe.task.extract is not None:
            found = found.with_extract(self.recipe.task.extract, self.method.splits)
        if self.recipe.task.labels is None:
            return found
        return found.limited(self.recipe.task.labels, self.method.splits)

    @property
    def style(self) -> str:
        return self.recipe.task.prompt_style

    def start(self) -> None:
        """Write the recipe, the environment, and what the data shares with test sets; set aside what is of another recipe."""
        found = environment(self.source, self.target, self.machine.batch_size)
        write_text(self.folder / "recipe.yaml", self.recipe.to_yaml())
        disown(self)
        memo_stages.drop_others(self)
        forget_others(self)
        write_json(self.folder / "env.json", found)
        record_overlap(self)

    def locate(self) -> None:
        """Attribution scores of both models, kept in `neurons/`."""
        if self.method.locate is None:
            raise ConfigError(f"method {self.method.name!r} locates nothing; run `pkt align` next")
        memo_stages.locate(self, "locate", self.task)

    def locate_on(self, name: str, examples: Sequence[Example]) -> None:
        """The same on other examples, as a stage of its own."""
        memo_stages.locate(self, f"locate {name}", self.task.located_with(examples))

    def prepare(self) -> None:
        """What runs of the method share beside scores, kept in `neurons/`: a source's answers."""
        memo_stages.prepare(self)

    def align(self) -> Delta:
        """The method's delta, in `delta.safetensors`."""
        path = self.folder / "delta.safetensors"

        def make() -> list[Path]:
            delta = self._delta()
            made = {"recipe": json.loads(self.recipe.model_dump_json()), "key": key, "base": self.target.digest}
            Delta(delta.changes, delta.provenance | made).save(path)
            return [path]

        key = align_key(self)
        self.prepare()
        told_by_first(not self.stages.is_done("align", key), cpu=self.target.torch_device == "cpu")
        self.stages.run("align", key, make, count=num_processes() == 1)  # what helpers do is not seen
        return Delta.load(path)

    def help_align(self) -> None:
        """What the other processes of a run do: train with the first, if it has to."""
        if told_by_first(False, cpu=self.target.torch_device == "cpu"):
            self._delta()

    def _delta(self) -> Delta:
        from torch import Generator

        gen = Generator().manual_seed(self.recipe.seed)
        return self.method(self.source, self.target, self.task, self.options, gen, style=self.style)

    def inject(self) -> Path:
        """The exported checkpoint, in `model/`."""
        from pkt.inject.adapter import offer_adapter
        from pkt.inject.export import export, kept_record

        delta_path, out = self.folder / "delta.safetensors", self.folder / "model"
        if not delta_path.is_file():
            raise DataError(f"{delta_path}: no such delta; run `pkt align {self.folder}` first")
        if "align" not in self.stages.records():
            raise DataError(f"{delta_path} is of another recipe than recipe.yaml; run `pkt align {self.folder}` first")
        key = inject_key(self, file_digest(delta_path))

        def make() -> list[Path]:
            delta = Delta.load(delta_path)
            adapter = offer_adapter(delta, self.target, self.folder / "adapter", self.recipe.export.adapter)
            kept = export(delta, self.target, out, dtype=self.recipe.export.dtype, overwrite=True)
            write_json(self.folder / "export.json", kept_record(kept))
            folders = [out] if adapter is None else [out, adapter]
            return [self.folder / "export.json", *sorted(p for f in folders for p in f.iterdir() if p.is_file())]

        self.stages.run("inject", key, make)
        return out

    def evaluate(self) -> None:
        """Scores of every arm, one line per item, in `scores.jsonl`; perplexities in `perplexity.json`."""
        from pkt.checks import check_asked

        arms = self.recipe.evaluate.arms
        if arms:
            check_asked(self, self.task)
        if "result" in arms and not (self.folder / "model" / "config.json").is_file():
            raise DataError(f"{self.folder / 'model'}: no exported model; run `pkt inject {self.folder}` first")
        if "result" in arms and "inject" not in self.stages.records():
            raise DataError(
                f"{self.folder / 'model'} is of another recipe than recipe.yaml, or of another delta; run `pkt align` and `pkt inject` first"
            )
        self.scores.drop_damaged()
        for arm in arms:
            lm = self._scored(arm)
            key = self.scores_key(arm)
            self.stages.run(f"evaluate {arm}", key, partial(self._score, arm, lm), partial(self.scores.digest, arm))
        self.scores.keep(arms)  # without arms that the recipe no longer names

    def scores_key(self, arm: str) -> str:
        """Hash of all that decides the scores of an arm."""
        from pkt.evaluation.guard import text_digest

        lm = self._scored(arm)
        return key_of("evaluate", arm, *lm.identity, lm.dtype, *self.evaluation(), text_digest(self.guard_text()))

    def _score(self, arm: str, lm: LM) -> list[Path]:
        found = self.scored(arm, lm, self.scores_key(arm))
        lines = [{"arm": arm, "seed": self.recipe.seed, **line} for line in found["lines"]]
        self.scores.put(arm, lines, found["perplexity"], self.recipe.evaluate.arms)
        return []

    def scored(self, arm: str, lm: LM, key: str) -> dict[str, Any]:
        """Score lines and perplexity of an arm; those of target and source through the memo, where it is shared."""

        def make() -> dict[str, Any]:
            from pkt.evaluation.harness import score
            from pkt.evaluation.perplexity import perplexity

            text = self.guard_text()
            with lm.loaded() as model:
                lines = score(
                    model,
                    lm.tokenizer,
                    self.task,
                    style=self.style,
                    limit=self.recipe.evaluate.limit,
                    seed=self.recipe.scoring_seed,
                    batch_size=self.machine.batch_size,
                    protocol=protocol_of(self.recipe, self.task),
                    execution=self.machine.execution,
                )
                return {"lines": lines, "perplexity": perplexity(model, lm.tokenizer, text) if text else None}

        if arm == "result" or not self.is_shared:
            return make()
        return remembered_value(self.memo / f"scores-{key[:16]}.json", key, make)

    def guard_text(self) -> str | None:
        """Text on which perplexity is measured, if there is one."""
        from pkt.evaluation.guard import guard_text

        return guard_text(self.recipe.evaluate.perplexity_text, is_nano=is_nano(self.task.name))

    def evaluation(self) -> list[Any]:
        """What decides a model's scores, beside the model."""
        from pkt.evaluation.harness import VERSION as HARNESS

        return [
            HARNESS,
            self.task.name,
            fingerprint(self.task.split("test")),
            self.style,
            self.recipe.evaluate.limit,
            self.recipe.scoring_seed,
            self.recipe.dtype,
            *asking(self.recipe, self.task),
        ]

    def certified_key(self) -> str:
        """Hash of what in the recipe decides a certificate."""
        hidden = {"arms", *unset(self.recipe)}
        return key_of(self.recipe.model_dump(mode="json", exclude={"name": True, "export": True, "evaluate": hidden}))

    @cached_property
    def _location(self) -> list[Any] | None:
        return self.method.location_key(self.task, self.options)

    def inputs(self, *splits: str) -> list[Any]:
        """Models, method and data that decide a stage's output."""
        data: list[Any] = [fingerprint(self.task.split(name)) for name in splits]
        if self.method.prepare is not None:  # where answers end is the format's
            data += self.task.format.later_version
        return [
            *self.source.identity,
            *self.target.identity,
            self.method.name,
            self.method.code,
            self._location,
            self.style,
            *data,
        ]
