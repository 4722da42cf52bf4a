"""What one process does for a certificate: try a learning rate, make and score an arm's delta, score a model.

A job leaves one record beside what it made, written last; a record with the right key and whole files is not made again.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from pkt.certify.arms import ARMS, REAL, Setting, transfer
from pkt.environment import code
from pkt.errors import DataError, TrainingError, UnsupportedModelError
from pkt.evaluation.guard import text_digest
from pkt.evaluation.harness import score
from pkt.evaluation.perplexity import window_losses
from pkt.files import read_record, write_json, write_text
from pkt.flops import counted
from pkt.inject.apply import injected
from pkt.inject.delta import Delta
from pkt.memo_costs import Cost, watched
from pkt.methods.base import MethodConfig
from pkt.models.checkpoint import file_digest
from pkt.models.lm import LM
from pkt.protocols import asking, protocol_of
from pkt.run import Run
from pkt.stages import key_of, peak_bytes, reset_peak
from pkt.tasks.base import Example, Task, fingerprint
from pkt.tasks.losses import encode_all, mean_loss

VALIDATION_BATCH = 16
BROKEN = -1000.0
"""Log-likelihood of a token, in nats, where a model gives none."""
EFFORT = ("trained_parameters", "labels", "steps")
"""What a method says of itself in its delta's provenance."""
GUARD_TEXT = "guard text"
"""Task name of the lines that hold the guard text's log-likelihoods."""


def now() -> str:
    """The time, to the millisecond, in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class Job:
    """`kind` is `select` (try `lr`), `transfer` (make and score the delta of `seed`) or `model` (score target or source)."""

    kind: str
    arm: str
    lr: float | None = None
    seed: int = 0

    def path(self, arms: Path) -> Path:
        """Its record, under the folder of arms."""
        names = {"select": f"lr-{self.lr:g}" if self.lr is not None else "", "transfer": f"seed-{self.seed}"}
        return arms / self.arm / f"{names.get(self.kind, 'model')}.json"


class Jobs:
    """The jobs of one certificate in one process. The target is loaded once."""

    def __init__(self, run: Run, wrong_examples: list[Example] | None, guard_tasks: list[Task], *, keep: bool) -> None:
        self.run, self.keep, self.guard_tasks = run, keep, guard_tasks
        self.arms = run.folder / "arms"
        self.setting = Setting(run.method, run.source, run.target, run.task, run.style, wrong_examples)
        self._held: LM | None = None
        self._stack = ExitStack()

    def close(self) -> None:
        """Release the model that is held."""
        self._stack.close()
        self._held = None

    def key(self, job: Job) -> str:
        """Hash of all that decides what a job makes."""
        run = self.run
        parts: list[Any] = [job.kind, job.arm]
        if job.kind == "model":
            lm = run.source if job.arm == "source" else run.target
            return key_of(*parts, *lm.identity, *self._scoring(job))
        given = self.setting.wrong_examples
        is_wrong = given is not None and job.arm == "wrong_task"
        wrong = run.method.location_key(run.task.located_with(given), run.options) if is_wrong else None
        parts += [
            *run.inputs(*run.method.reads(run.options)),
            self.options(job).model_dump(),
            job.seed,
            run.recipe.dtype,
            wrong,
        ]
        return (
            key_of(*parts, fingerprint(run.task.split("valid")))
            if job.kind == "select"
            else key_of(*parts, *self._scoring(job))
        )

    def _scoring(self, job: Job) -> list[Any]:
        """What decides the scores of a job; guards are scored before and after the real transfer alone."""
        return [*self._items, *(self._guards if job.arm in (REAL, "target") else [])]

    @cached_property
    def _items(self) -> list[Any]:
        return self.run.evaluation()

    @cached_property
    def _guards(self) -> list[Any]:
        text = self.run.guard_text()
        tasks = self.guard_tasks
        return [
            text_digest(text),
            *([task.name, fingerprint(task.split("test")), *asking(self.run.recipe, task)] for task in tasks),
        ]

    def options(self, job: Job) -> MethodConfig:
        """The method's options with the learning rate of a job."""
        if job.lr is None or self.run.method.learning_rate is None:
            return self.run.options
        return self.run.options.model_validate({**self.run.options.model_dump(), self.run.method.learning_rate: job.lr})

    def done(self, job: Job) -> dict[str, Any] | None:
        """The record of a finished job, if its files are as it left them."""
        path = job.path(self.arms)
        record = read_record(path)
        if record.get("key") != self.key(job):
            return None
        files = record.get("files", {})
        if job.kind == "transfer" and self.keep and path.with_suffix(".safetensors").name not in files:
            return None
        held = ((path.parent / name, digest) for name, digest in files.items())
        return record if all(file.is_file() and file_digest(file) == digest for file, digest in held) else None

    def others(self) -> list[Path]:
        """Records of arms at seeds that another recipe, other weights or other code left."""
        found = []
        for path in sorted(self.arms.glob("*/seed-*.json")):
            seed = path.stem.removeprefix("seed-")
            job = Job("transfer", path.parent.name, read_record(path).get("lr"), int(seed) if seed.isdecimal() else -1)
            if job.arm not in ARMS or self.done(job) is None:
                found.append(path)
        return found

    def work(self, job: Job) -> dict[str, Any]:
        """Do a job and write its record."""
        reset_peak()
        key = self.key(job)
        start, started = time.perf_counter(), now()
        what: dict[str, Callable[[Job], dict[str, Any]]] = {
            "select": self._select,
            "transfer": self._transfer,
            "model": self._model,
        }
        try:
            made = what[job.kind](job)
        except (TrainingError, UnsupportedModelError, DataError) as e:
            at = f", seed {job.seed}, learning rate {job.lr:g}" if job.lr is not None else ""
            hint = "; with certificate.learning_rates arms get other rates" if isinstance(e, TrainingError) else ""
            raise type(e)(f"{job.arm}{at}: {e}{hint}") from e
        record = {"key": key, "arm": job.arm, "lr": job.lr, "seed": job.seed, **made}
        record |= {
            "started": started,
            "finished": now(),
            "seconds": round(time.perf_counter() - start, 3),
            "peak_memory_gib": round(peak_bytes() / 2**30, 3),
            "threads": torch.get_num_threads(),
            "device": self.run.target.torch_device,
            "sources": code()["sources"],
        }
        write_json(job.path(self.arms), record)
        return record

    def delta(self, job: Job) -> Delta:
        """The delta of an arm, made anew."""
        self._make_room()
        made = transfer(job.arm, self.setting, self.options(job), job.seed)
        return Delta(made.changes, made.provenance | {"arm": job.arm, "seed": job.seed, "key": self.key(job)})

    def _made(self, job: Job) -> tuple[Delta, dict[str, Any]]:
        """The delta of an arm with what it took, without the loading of the target."""
        self._make_room()
        start = time.perf_counter()
        with counted() as count, watched() as memo:
            delta = self.delta(job)
        spent = Cost(count.flop, time.perf_counter() - start) + memo.continued
        read = sorted(path.name for path in memo.files)
        return delta, {"flop": spent.flop, "delta_seconds": round(spent.seconds, 3), "memo": read}

    def _make_room(self) -> None:
        """Hold the target, or nothing where the method loads what it works on."""
        if self.run.method.trains_copy:
            self.close()
        else:
            self._hold(self.run.target)

    def _select(self, job: Job) -> dict[str, Any]:
        """Loss on the valid split; None where training diverged."""
        run = self.run
        try:
            delta, cost = self._made(job)
        except TrainingError as e:
            return {"loss": None, "note": str(e)}
        examples = encode_all(run.task.split("valid"), run.style, run.target, loss_on_prompt=False)
        self._hold(run.target)
        with run.target.loaded() as model, injected(model, delta):
            loss = mean_loss(model, run.target, examples, VALIDATION_BATCH)
        return {"loss": loss if math.isfinite(loss) else None, **cost}

    def _transfer(self, job: Job) -> dict[str, Any]:
        delta, cost = self._made(job)
        at = job.path(self.arms)
        weights, scores = at.with_suffix(".safetensors"), at.with_suffix(".jsonl")
        delta.save(weights)
        files = {weights.name: file_digest(weights)}
        self._hold(self.run.target)
        with self.run.target.loaded() as model, injected(model, delta):
            self._write(scores, model, self.run.target, guards=job.arm == REAL)
        made = {"delta": files[weights.name], **{key: delta.provenance.get(key) for key in EFFORT}, **cost}
        if not self.keep:
            weights.unlink()
            files = {}
        return {**made, "files": files | {scores.name: file_digest(scores)}}

    def _model(self, job: Job) -> dict[str, Any]:
        lm = self.run.source if job.arm == "source" else self.run.target
        self._hold(lm)
        scores = job.path(self.arms).with_suffix(".jsonl")
        with lm.loaded() as model:
            self._write(scores, model, lm, guards=job.arm == "target")
        return {"files": {scores.name: file_digest(scores)}}

    def _hold(self, lm: LM) -> None:
        """Keep one model loaded from job to job: source and target are never in memory together."""
        if self._held is not lm:
            self.close()
            self._stack.enter_context(lm.loaded())
            self._held = lm

    def _write(self, path: Path, model: Any, lm: LM, *, guards: bool) -> None:
        """One line per item; with `guards`, those of the other tasks and of the guard text too."""
        run, lines = self.run, []
        for task in (run.task, *(self.guard_tasks if guards else [])):
            scored = score(
                model,
                lm.tokenizer,
                task,
                style=run.style,
                limit=run.recipe.evaluate.limit,
                seed=run.recipe.scoring_seed,
                batch_size=run.machine.batch_size,
                protocol=protocol_of(run.recipe, task),
                execution=run.machine.execution,
            )
            lines += [{k: v for k, v in line.items() if k != "prompt"} for line in scored]
        text = run.guard_text() if guards else None
        if text:
            lines += [
                {
                    "task": GUARD_TEXT,
                    "id": f"window {i}",
                    "unit": f"window {i}",
                    "tier": "",
                    "score": -loss / count if math.isfinite(loss) else BROKEN,
                    "weight": count,
                }
                for i, (count, loss) in enumerate(window_losses(model, lm.tokenizer, text))
            ]
        write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
