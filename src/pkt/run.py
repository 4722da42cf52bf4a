"""From a recipe to a run folder, in stages that continue where an earlier run stopped.

Every stage has a key, the hash of all that decides its output. `stages.json` keeps the keys of finished stages with the
hashes of their files: a stage whose key and files still match is not run again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import resource
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from pkt.config import Recipe, validate
from pkt.errors import ConfigError, DataError
from pkt.files import write_json, write_text
from pkt.inject.delta import Delta
from pkt.models.checkpoint import file_digest, is_nano
from pkt.models.lm import LM
from pkt.tasks.base import Task, fingerprint

log = logging.getLogger(__name__)

STAGES = ("locate", "align", "inject", "evaluate")
VERSION = 1
"""Part of every key: raise it when a stage's output changes for the same inputs."""


@dataclass(frozen=True)
class Machine:
    """Where a run runs; no part of its result."""

    device: str = "auto"
    batch_size: int = 64


class Run:
    """One recipe in one folder.

    Raises:
        ConfigError: the recipe is wrong, or the folder holds the run of another recipe.
    """

    def __init__(self, recipe: Recipe, folder: Path, machine: Machine | None = None) -> None:
        self.recipe, self.folder, self.machine = recipe, folder, machine or Machine()
        self.method, self.options = _method(recipe)
        self._check_folder()

    @staticmethod
    def resume(folder: Path, machine: Machine | None = None) -> Run:
        """The run that `folder` already holds.

        Raises:
            DataError: there is none.
        """
        from pkt.config import read_yaml

        path = folder / "recipe.yaml"
        if not path.is_file():
            raise DataError(
                f"{folder}: no recipe.yaml in it; start with `pkt run` or `pkt locate RECIPE --out {folder}`"
            )
        return Run(validate(Recipe, read_yaml(path.read_text(encoding="utf-8"), str(path)), str(path)), folder, machine)

    def _check_folder(self) -> None:
        path = self.folder / "recipe.yaml"
        if self.folder.is_file():
            raise ConfigError(f"{self.folder} is a file; give a folder")
        if not path.is_file():
            if self.folder.is_dir() and any(self.folder.iterdir()):
                raise ConfigError(f"{self.folder} holds files but no run; give a new or empty folder")
            return
        from pkt.config import read_yaml

        other = read_yaml(path.read_text(encoding="utf-8"), str(path))
        if other.get("name") != self.recipe.name:
            raise ConfigError(
                f"{self.folder} holds the run of recipe {other.get('name')!r}, not of {self.recipe.name!r}; give another folder"
            )

    @cached_property
    def source(self) -> LM:
        return self._lm(self.recipe.source.name, self.recipe.source.revision, self.recipe.dtype)

    @cached_property
    def target(self) -> LM:
        return self._lm(self.recipe.target.name, self.recipe.target.revision, self.recipe.dtype)

    @cached_property
    def result(self) -> LM:
        """The exported model."""
        return self._lm(str(self.folder / "model"), None, self.recipe.dtype)

    def _lm(self, name: str, revision: str | None, dtype: str) -> LM:
        return LM(name, revision=revision, device=self.machine.device, dtype=dtype, memo=self.folder / "neurons")

    @cached_property
    def task(self) -> Task:
        from pkt.tasks.sources import task

        return task(self.recipe.task.name, self.recipe.task.data)

    @property
    def style(self) -> str:
        return self.recipe.task.prompt_style

    def start(self) -> None:
        """Check everything that can be checked without weights, then write the recipe and the environment."""
        self.method.requires(self.source, self.target, self.options)
        self.task.check_disjoint(*self.method.splits, "test")
        for name in self.method.splits:
            if not self.task.split(name):
                raise DataError(
                    f"{self.task.name}: split {name} is empty; {self.method.name} needs at least one example"
                )
        resolved = self.recipe.model_copy(update={"method": {"name": self.method.name, **self.options.model_dump()}})
        write_text(self.folder / "recipe.yaml", resolved.to_yaml())
        write_json(self.folder / "env.json", environment(self.source, self.target, self.machine))

    def locate(self) -> None:
        """Attribution scores of both models, kept in `neurons/`."""
        if self.method.locate is None:
            raise ConfigError(f"method {self.method.name!r} locates nothing; run `pkt align` next")
        key = self._key("locate", self._inputs("extract"), self.method.locate_key(self.options))
        self._stage("locate", key, self._locate)

    def _locate(self) -> list[Path]:
        assert self.method.locate is not None
        self.method.locate(self.source, self.target, self.task, self.options, self.style)
        return sorted((self.folder / "neurons").glob("*.safetensors"))

    def align(self) -> Delta:
        """The method's delta, in `delta.safetensors`."""
        from torch import Generator

        path = self.folder / "delta.safetensors"

        def make() -> list[Path]:
            delta = self.method(
                self.source,
                self.target,
                self.task,
                self.options,
                Generator().manual_seed(self.recipe.seed),
                style=self.style,
            )
            Delta(
                delta.changes, delta.provenance | {"recipe": json.loads(self.recipe.model_dump_json()), "key": key}
            ).save(path)
            return [path]

        key = self._key(
            "align", self._inputs(*self.method.splits), self.options.model_dump(), self.recipe.seed, self.recipe.dtype
        )
        self._stage("align", key, make)
        return Delta.load(path)

    def inject(self) -> Path:
        """The exported checkpoint, in `model/`."""
        from pkt.inject.export import export, kept_record

        delta_path, out = self.folder / "delta.safetensors", self.folder / "model"
        if not delta_path.is_file():
            raise DataError(f"{delta_path}: no such delta; run `pkt align {self.folder}` first")
        key = self._key("inject", file_digest(delta_path), self.target.digest, self.recipe.export.dtype)

        def make() -> list[Path]:
            kept = export(Delta.load(delta_path), self.target, out, dtype=self.recipe.export.dtype)
            write_json(self.folder / "export.json", kept_record(kept))
            return [self.folder / "export.json", *sorted(out.glob("*.safetensors")), out / "config.json"]

        self._stage("inject", key, make)
        return out

    def evaluate(self) -> list[dict[str, Any]]:
        """Scores of every arm, one line per item, in `scores.jsonl`; perplexities in `perplexity.json`."""
        for arm in self.recipe.evaluate.arms:
            lm: LM = getattr(self, arm)
            key = self._key("evaluate", arm, lm.digest, *self._evaluation())
            self._stage(f"evaluate {arm}", key, partial(self._score, arm, lm))
        return self.scores()

    def _score(self, arm: str, lm: LM) -> list[Path]:
        from pkt.evaluate.harness import score
        from pkt.evaluate.perplexity import perplexity

        cfg = self.recipe.evaluate
        text = self._guard_text()
        with lm.loaded() as model:
            lines = score(
                model,
                lm.tokenizer,
                self.task,
                style=self.style,
                limit=cfg.limit,
                seed=self.recipe.seed,
                batch_size=self.machine.batch_size,
            )
            found = perplexity(model, lm.tokenizer, text) if text else None
        kept = [line for line in self.scores() if line["arm"] != arm]
        new = [{"arm": arm, "seed": self.recipe.seed, "task": self.task.name, **line} for line in lines]
        order = list(self.recipe.evaluate.arms)
        every = sorted([*kept, *new], key=lambda line: order.index(line["arm"]) if line["arm"] in order else len(order))
        write_text(self.folder / "scores.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in every))
        path = self.folder / "perplexity.json"
        known = json.loads(path.read_text()) if path.is_file() else {}
        write_json(path, known | {arm: found})
        return []

    def scores(self) -> list[dict[str, Any]]:
        """The lines of `scores.jsonl`, if there are any."""
        path = self.folder / "scores.jsonl"
        return (
            [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
            if path.is_file()
            else []
        )

    def _guard_text(self) -> str | None:
        path = self.recipe.evaluate.perplexity_text
        if path:
            if not Path(path).is_file():
                raise DataError(f"evaluate.perplexity_text: no file {path}")
            return Path(path).read_text(encoding="utf-8")
        if is_nano(self.task.name):
            from pkt.nano.world import neutral_lines

            return "\n".join(neutral_lines("guard", 400))
        return None

    def _evaluation(self) -> list[Any]:
        text = self._guard_text()
        return [
            fingerprint(self.task.split("test")),
            self.style,
            self.recipe.evaluate.limit,
            self.recipe.seed,
            self.recipe.dtype,
            hashlib.sha256(text.encode()).hexdigest() if text else None,
        ]

    def _inputs(self, *splits: str) -> list[Any]:
        data = [fingerprint(self.task.split(name)) for name in splits]
        return [self.source.digest, self.target.digest, self.method.name, self.style, *data]

    def _key(self, *parts: Any) -> str:
        return hashlib.sha256(json.dumps([VERSION, *parts], sort_keys=True).encode()).hexdigest()

    def stages(self) -> dict[str, dict[str, Any]]:
        """What `stages.json` says."""
        path = self.folder / "stages.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def _stage(self, name: str, key: str, make: Callable[[], Iterable[Path]]) -> None:
        done = self.stages().get(name)
        if (
            done
            and done["key"] == key
            and all(_matches(self.folder / f, digest) for f, digest in done["files"].items())
        ):
            log.info("%s: already done", name)
            return
        start = time.perf_counter()
        _reset_peak()
        files = make()
        record = {
            "key": key,
            "files": {str(f.relative_to(self.folder)): file_digest(f) for f in files},
            "seconds": round(time.perf_counter() - start, 3),
            "peak_memory_gib": round(_peak_bytes() / 2**30, 3),
        }
        write_json(self.folder / "stages.json", self.stages() | {name: record})
        log.info("%s: %.1f s", name, record["seconds"])


def _matches(path: Path, digest: str) -> bool:
    return path.is_file() and file_digest(path) == digest


def _method(recipe: Recipe) -> tuple[Any, Any]:
    """The method and its validated options."""
    from pkt.methods import METHODS

    options = dict(recipe.method)
    method = METHODS.get(options.pop("name"))
    return method, validate(method.config, options, f"recipe {recipe.name}", "method")


def execute(recipe: Recipe, folder: Path, machine: Machine | None = None) -> Run:
    """All stages, then the summary, the model card and the report."""
    from pkt.report.html import write
    from pkt.summary import write_summary

    run = Run(recipe, folder, machine)
    run.start()
    if run.method.locate is not None:
        run.locate()
    run.align()
    run.inject()
    run.evaluate()
    write_summary(run)
    write(folder)
    return run


def environment(source: LM, target: LM, machine: Machine) -> dict[str, Any]:
    """Versions, device, commit and the hashes of both models."""
    import platform
    import subprocess
    import sys
    from importlib.metadata import version

    import torch

    here = Path(__file__).parent
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {
            name: version(name) for name in ("pkt", "torch", "transformers", "safetensors", "tokenizers", "lm_eval")
        },
        "device": target.torch_device,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "batch_size": machine.batch_size,
        "commit": commit or None,
        "command": " ".join(sys.argv),
        "weights": {source.name: source.digest, target.name: target.digest},
    }


def _reset_peak() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _peak_bytes() -> int:
    """Peak of the GPU's memory in this stage, or of this process so far on a CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
