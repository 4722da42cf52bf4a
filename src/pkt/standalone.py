"""Any model on several tasks: what is asked, checked before anything is loaded; the scores; the folder that keeps them.

1. `plan` reads the data and settles how each task is asked. All that can be wrong is wrong here.
2. `evaluate` loads the model once and scores task after task. With a folder each finished task is written at once, and one that
   stands there with the same key and the same lines is kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pkt.environment import environment
from pkt.errors import ConfigError, DataError
from pkt.evaluation.statistics import by_part, summarise
from pkt.files import leftovers, locked, write_json, write_text
from pkt.inject.given import Given
from pkt.machine import Machine
from pkt.models.checkpoint import is_nano
from pkt.protocols import decided
from pkt.stages import key_of
from pkt.tasks.base import Task, fingerprint
from pkt.tasks.chance import chance_of
from pkt.tasks.prompts import STYLES, render
from pkt.tasks.protocol import Protocol, TooLong, resolved
from pkt.tasks.sources import task as task_of

log = logging.getLogger(__name__)

ARM = "model"
"""The arm of the score lines: there is only one model."""
Line = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a model is asked. None: as the task's protocol has it."""

    tasks: Sequence[str]
    data: Path | None = None
    """Folder of tasks that are not embedded; None means the hub."""
    style: str | None = None
    """Prompt style; None means plain for the embedded models, which were trained so, and tulu for others, as the papers have it."""
    shots: int | None = None
    samples: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    too_long: TooLong = "stop"
    limit: int | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Planned:
    """One task, and how it is asked."""

    task: Task
    protocol: Protocol
    style: str
    key: str
    """Hash of all that decides its scores."""


def plan(given: Given, wanted: Wanted, machine: Machine) -> list[Planned]:
    """The tasks, each with its protocol. Reads data, and nothing of the weights but their hashes.

    Raises:
        PktError: a task, its data, an option or the leave to run code is wrong, or a prompt does not fit.
    """
    if len(set(wanted.tasks)) < len(wanted.tasks):
        raise ConfigError(f"--task: a task is named twice in {', '.join(wanted.tasks)}; name each once")
    tasks = [task_of(name, None if is_nano(name) else wanted.data) for name in wanted.tasks]
    if wanted.data is not None and all(is_nano(name) for name in wanted.tasks):
        raise ConfigError(f"--data: {', '.join(wanted.tasks)} need none, being embedded; leave it out")
    style = wanted.style or ("plain" if is_nano(given.lm.name) else "tulu")
    if style not in STYLES:
        raise ConfigError(f"--style: found {style!r}, expected one of {', '.join(STYLES)}")
    _check_options(tasks, wanted)
    return [_planned(given, task, style, wanted, machine) for task in tasks]


def _check_options(tasks: Sequence[Task], wanted: Wanted) -> None:
    """An option that no task can follow is a mistake; one that only some can is theirs."""
    names = ", ".join(task.name for task in tasks)
    if wanted.shots and not any(task.format.shown for task in tasks):
        raise ConfigError(f"--shots is {wanted.shots}, but there are no worked examples for {names}; leave it out")
    sampling = {"--samples": wanted.samples, "--temperature": wanted.temperature, "--top-p": wanted.top_p}
    said = [option for option, value in sampling.items() if value is not None]
    if said and all(task.format.ranks for task in tasks):
        raise ConfigError(f"{', '.join(said)}: {names} ranks its choices and writes nothing; leave it out")
    if wanted.top_p == 0:
        raise ConfigError("--top-p is 0, expected above 0 and at most 1; 1 samples from all tokens")


def _planned(given: Given, task: Task, style: str, wanted: Wanted, machine: Machine) -> Planned:
    from pkt.evaluation.asking import Asking
    from pkt.evaluation.grading import check_gradable
    from pkt.evaluation.harness import VERSION, draw

    form, options = task.format, {"too_long": wanted.too_long}
    asked: dict[str, Any] = {"shots": wanted.shots} if form.shown else {}
    if not form.ranks:
        asked |= {"samples": wanted.samples, "temperature": wanted.temperature, "top_p": wanted.top_p}
    protocol = resolved(form, task.name, **asked, **options)
    examples = draw(task.split("test"), wanted.limit, wanted.seed)
    check_gradable(task, examples, machine.execution)
    for example in examples[:1]:
        render(example, style, given.lm.tokenizer)
    if (
        protocol.too_long == "stop"
    ):  # worked examples are dropped before a prompt is too long: it is looked at without any
        context = given.lm.config.get_text_config().max_position_embeddings
        Asking(task, style, given.lm.tokenizer, context, replace(protocol, shots=0)).all(examples)
    key = key_of(
        "evaluate",
        VERSION,
        *given.identity,
        given.lm.dtype,
        task.name,
        fingerprint(task.split("test")),
        style,
        wanted.limit,
        wanted.seed,
        *decided(protocol, task),
    )
    return Planned(task, protocol, style, key)


def evaluate(
    given: Given, wanted: Wanted, machine: Machine | None = None, folder: Path | None = None
) -> dict[str, Any]:
    """Score a model on tasks: what `evaluation.json` holds, with the tasks that were asked alone.

    Args:
        folder: for `evaluation.json` and `scores.jsonl`; None keeps nothing.

    Raises:
        PktError: see `plan`; the folder holds something else.
    """
    machine = machine or Machine()
    if folder:
        Kept(folder, given)  # refuses a folder of something else before any work
    planned = plan(given, wanted, machine)
    with locked(folder) if folder else nullcontext():
        kept = Kept(folder, given)
        if kept.outdated:
            log.warning(
                "%s: the model, its base or its dtype is another than when evaluation.json was written; its scores of %s are replaced",
                folder,
                ", ".join(kept.outdated),
            )
        missing = [one for one in planned if not kept.has(one)]
        for one in planned:
            if one not in missing:
                log.info("%s: already done", one.task.name)
        if missing:
            with given.loaded() as model:
                for one in missing:
                    kept.put(one, *_scored(given, model, one, wanted, machine))
    return kept.content([one.task.name for one in planned])


def _scored(
    given: Given, model: Any, one: Planned, wanted: Wanted, machine: Machine
) -> tuple[dict[str, Any], list[Line]]:
    """One task's record and its score lines."""
    from pkt.evaluation.harness import score

    task, start = one.task, time.perf_counter()
    found = score(
        model,
        given.lm.tokenizer,
        task,
        style=one.style,
        limit=wanted.limit,
        seed=wanted.seed,
        batch_size=machine.batch_size,
        protocol=one.protocol,
        execution=machine.execution,
    )
    seconds = time.perf_counter() - start
    log.info("%s: %.1f s", task.name, seconds)
    lines = [{"arm": ARM, "seed": wanted.seed, **line} for line in found]
    record = {
        "task": task.name,
        "origin": task.origin,
        "test": fingerprint(task.split("test")),
        "version": task.format.version,
        "is_ranked": task.format.ranks,
        "protocol": {"style": one.style, "limit": wanted.limit, "seed": wanted.seed, **asdict(one.protocol)},
        "scores": [row | {"chance": chance_of(task.name, row["tier"])} for row in summarise(lines)],
        "parts": by_part(lines) if task.name == "mmlu" else [],
        "too_long": sum("too_long" in line for line in lines),
        "fewer_shots": sum(line.get("shots", 0) < one.protocol.shots for line in lines),
        "dropped": [asdict(row) for row in task.dropped],
        "seconds": round(seconds, 1),
        "environment": environment(given.lm, given.lm, machine.batch_size),
    }
    return record, lines


class Kept:
    """What a folder keeps of a model's scores; without a folder, what was scored just now.

    Raises:
        ConfigError: the folder holds something else, or scores of a model of another name.
        DataError: its `evaluation.json` cannot be read.
    """

    def __init__(self, folder: Path | None, given: Given) -> None:
        self.folder, self.given = folder, given
        self.records: dict[str, dict[str, Any]] = {}
        self.lines: list[Line] = []
        self.outdated: list[str] = []
        """Tasks that the folder holds of other weights, another base or dtype: the first new score replaces them."""
        if folder and folder.exists():
            self._read(folder)

    def _read(self, folder: Path) -> None:
        path = folder / "evaluation.json"
        if not path.is_file():
            if not folder.is_dir() or set(folder.iterdir()) - set(leftovers(folder)):
                raise ConfigError(f"{folder} holds something else than an evaluation; give a new or empty folder")
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            model, records = dict(found["model"]), {record["task"]: dict(record) for record in found["tasks"]}
            name = model["name"]
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{path}: damaged; delete it, and the tasks are scored again") from None
        if name != self.given.name:
            raise ConfigError(f"{folder} holds the evaluation of {name}, not of {self.given.name}; give another folder")
        if model != self.given.record():
            self.outdated = list(records)
            return
        self.records = records
        self.lines = _lines_of(folder / "scores.jsonl")

    def has(self, one: Planned) -> bool:
        """Whether a task was scored so, and its lines are as they were."""
        record = self.records.get(one.task.name, {})
        return record.get("key") == one.key and record.get("lines") == _digest(self._of(one.task.name))

    def put(self, one: Planned, record: Mapping[str, Any], lines: Sequence[Line]) -> None:
        """Take down a task's record and lines, in place of earlier ones: the lines first, so that a record has lines."""
        name = one.task.name
        self.lines = [line for line in self.lines if line["task"] != name] + list(lines)
        self.records[name] = {**record, "key": one.key, "lines": _digest(lines)}
        if self.folder:
            for path in leftovers(self.folder):
                path.unlink()
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in self.lines)
            write_text(self.folder / "scores.jsonl", text)
            write_json(self.folder / "evaluation.json", self.content(list(self.records)))

    def content(self, names: Sequence[str]) -> dict[str, Any]:
        """The model, and the records of some tasks."""
        return {"model": self.given.record(), "tasks": [self.records[name] for name in names]}

    def _of(self, task: str) -> list[Line]:
        return [line for line in self.lines if line["task"] == task]


def _lines_of(path: Path) -> list[Line]:
    """The lines of a file that can be read; a damaged one has none, and its tasks are scored again."""
    try:
        found = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        return [{**line, "task": line["task"]} for line in found]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _digest(lines: Sequence[Line]) -> str:
    return hashlib.sha256(json.dumps(list(lines), sort_keys=True).encode()).hexdigest()
