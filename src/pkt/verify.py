"""Does a certificate follow from the files beside it? And does an arm, repeated, give the same delta?"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pkt.certification import Certification
from pkt.certify.search import Search
from pkt.environment import code
from pkt.errors import ConfigError, DataError
from pkt.evaluation.grading import earned
from pkt.evidence import FORMAT, certificate, jobs_of, memo_digests, read_lines, scores_path
from pkt.files import read_record
from pkt.jobs import GUARD_TEXT, Job
from pkt.machine import Machine
from pkt.models.checkpoint import file_digest
from pkt.registry import nearest
from pkt.run import Run


@dataclass(frozen=True)
class Check:
    """One thing that was compared. `holds` is None for what is worth knowing, but no fault."""

    name: str
    holds: bool | None
    detail: str


def read_certificate(folder: Path) -> dict[str, Any]:
    """The content of a folder's `certificate.json`.

    Raises:
        DataError: there is none, or it is no certificate.
    """
    path = folder / "certificate.json"
    if not path.is_file():
        raise DataError(f"{path}: no such certificate; make it with `pkt certify RECIPE --out {folder}`")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise DataError(f"{path}: not valid JSON; make it anew with `pkt certify RECIPE --out {folder}`") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise DataError(f"{path}: not a certificate of this version (expected format {FORMAT!r}); make it anew")
    return found


def verify(folder: Path, machine: Machine | None = None) -> list[Check]:
    """Compare a certificate with the run folder: hashes, order of work, grades, and the verdict computed anew."""
    stated = read_certificate(folder)
    made = Certification(Run.resume(folder, machine))
    try:
        found = certificate(made)
        return [
            *_compare(stated, found, made.run),
            *(_arm(made, row) for row in found["arms"] if row["reason"] is None),
            _models(made),
            _deltas(made, found),
            _grades(made),
        ]
    except DataError as e:
        return [Check("files", False, str(e))]
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as e:
        return [Check("files", False, f"a record or a score line is not what it should be ({type(e).__name__}: {e})")]


def _compare(stated: dict[str, Any], found: dict[str, Any], run: Run) -> Iterator[Check]:
    """The stated certificate beside the one that the folder gives now."""

    def same(name: str, one: Any, two: Any, detail: str) -> Check:
        different = list(_differences(one, two))
        return Check(name, not different, detail if not different else f"differs: {', '.join(different[:4])}")

    made_by = _code(_part(stated, "code"), found["code"])
    yield made_by
    for role in ("source", "target"):
        yield same(f"{role} weights", stated.get(role), found[role], found[role]["weights"][:16])
    hashes, now = _part(stated, "hashes"), found["hashes"]
    yield same("recipe", hashes.get("recipe"), now["recipe"], now["recipe"][:16])
    yield same("data", hashes.get("data"), now["data"], ", ".join(now["data"]))
    location = _part(hashes, "location")
    held = now["location"] | memo_digests(run, location)  # older certificates state more
    yield same("location", location, held, f"{len(held)} files")
    yield same("scores of target and source", hashes.get("scores"), now["scores"], "2 files")
    arms = stated.get("arms")
    known = {row.get("arm"): row for row in arms if isinstance(row, dict)} if isinstance(arms, list) else {}
    for row in found["arms"]:
        if row["reason"] is None:
            then = _part(known.get(row["arm"], {}), "hashes")
            yield same(row["arm"], then, row["hashes"], f"learning rate and {len(row['hashes']['scores'])} score files")
    seen = {"code", "hashes", "source", "target"}
    if made_by.holds is None and stated.get("rule") != found["rule"]:
        seen.add("rule")
        yield Check("rule", None, "in other words than those of this code")
    rest = [{k: v for k, v in c.items() if k not in seen} for c in (stated, found)]
    yield same("verdict", rest[0], rest[1], f"{found['verdict']}, recomputed from the score files")


def _part(value: dict[str, Any], key: str) -> dict[str, Any]:
    part = value.get(key)
    return part if isinstance(part, dict) else {}


def _code(stated: dict[str, Any], found: dict[str, Any]) -> Check:
    """Which code made the arms, and which checks them now."""
    now = code()["sources"]
    if stated.get("sources") == found["sources"] == [now]:
        return Check("code", True, f"pkt {found['pkt']}, the same source files")
    made_by = f"pkt {stated.get('pkt')}, commit {stated.get('commit')}"
    if len(found["sources"]) > 1:
        return Check("code", None, f"{len(found['sources'])} versions of the code made the arms, the last {made_by}")
    return Check("code", None, f"made by {made_by}; checked by other source files")


def _differences(one: Any, two: Any, at: str = "") -> Iterator[str]:
    """Paths at which two JSON values differ; floats may differ in the last digits."""
    if isinstance(one, dict) and isinstance(two, dict):
        for key in sorted({*one, *two}):
            yield from _differences(one.get(key), two.get(key), f"{at}.{key}" if at else key)
    elif isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        for i, (a, b) in enumerate(zip(one, two, strict=True)):
            yield from _differences(a, b, f"{at}[{i}]")
    elif isinstance(one, float) and isinstance(two, float):
        if not math.isclose(one, two, rel_tol=1e-9, abs_tol=1e-12):
            yield at or "value"
    elif one != two:
        yield at or "value"


def _arm(made: Certification, row: dict[str, Any]) -> Check:
    """An arm's records are of this recipe, its learning rate follows from them, and stood before a test item was seen."""
    arm, jobs = row["arm"], made.jobs()
    name = f"{arm}, records"
    rate = read_record(made.folder / arm / "learning_rate.json")
    found = [(job, read_record(job.path(made.folder))) for job in jobs_of(made, row)]
    for job, record in found:
        if record.get("key") != jobs.key(job):
            return Check(name, False, f"{job.path(made.folder)} is of another recipe or learning rate")
    tried = {job.lr: record["loss"] for job, record in found if job.kind == "select"}
    if tried != {point["lr"]: point["loss"] for point in row["curve"]}:
        return Check(name, False, "the curve of its learning rates is not that of its records")
    wrong = _wrong_rate(made, row)
    if wrong:
        return Check(name, False, wrong)
    decided = max([record["finished"] for job, record in found if job.kind == "select"], default="")
    for job, record in found:
        if job.kind == "transfer" and record["started"] < min(rate["fixed"], decided):
            return Check(name, False, f"seed {job.seed} was scored before the learning rate was fixed")
    return Check(name, True, "of this recipe; learning rate fixed before a test item was seen")


def _wrong_rate(made: Certification, row: dict[str, Any]) -> str | None:
    """What is wrong with an arm's learning rate, given the recipe and the curve."""
    arm, rates, option = row["arm"], made.cfg.learning_rates, made.run.method.learning_rate
    centre = getattr(made.run.options, option) if option else None
    if arm not in made.searched:
        meant = rates.get(arm, centre) if isinstance(rates, dict) else centre
        right = row["lr"] == meant and not row["curve"] and not row["at_edge"]
        return None if right else f"its learning rate {row['lr']} is not that of the recipe, {meant}"
    losses = {point["lr"]: math.inf if point["loss"] is None else point["loss"] for point in row["curve"]}
    search = Search(float(centre or 0), made.cfg.factors, losses)
    if search.wanted():
        return "the search for its learning rate is not finished"
    if search.best() != row["lr"]:
        return f"its learning rate {row['lr']:g} is not the best of its curve"
    return None if search.at_edge() == row["at_edge"] else "its learning rate is said to be where it is not"


def _models(made: Certification) -> Check:
    """The scores of target and source are of these models, items and settings."""
    jobs = made.jobs()
    for job in (Job("model", "target"), Job("model", "source")):
        path = job.path(made.folder)
        if read_record(path).get("key") != jobs.key(job):
            return Check("target and source, records", False, f"{path} is of another model or recipe")
    return Check("target and source, records", True, "of these models and this recipe")


def _deltas(made: Certification, found: dict[str, Any]) -> Check:
    """The kept deltas are those of the records."""
    wrong, held = [], 0
    for row in found["arms"]:
        for seed, digest in zip(made.seeds, row.get("hashes", {}).get("deltas", []), strict=False):
            path = scores_path(made, row["arm"], seed).with_suffix(".safetensors")
            if path.is_file():
                held += 1
                wrong += [str(path)] if file_digest(path) != digest else []
            elif made.cfg.keep_deltas:
                wrong.append(f"{path} (missing)")
    if wrong:
        more = f" and {len(wrong) - 1} more" if wrong[1:] else ""
        return Check("deltas", False, f"not as recorded: {wrong[0]}{more}")
    return Check("deltas", True if held else None, f"{held} files" if held else "none were kept")


def _grades(made: Certification) -> Check:
    """The scores follow from the outputs, but for the guard text, which has none, and for programs that may not be run."""
    tasks = {task.name: task for task in (made.run.task, *made.guard_tasks)}
    examples = {name: {e.id: e for e in task.split("test")} for name, task in tasks.items()}
    paths = [scores_path(made, arm) for arm in ("target", "source")]
    paths += [scores_path(made, arm, seed) for arm in made.arms for seed in made.seeds]
    count, left = 0, 0
    for path in paths:
        lines = [line for line in read_lines(path) if line["task"] != GUARD_TEXT]
        for line in lines:
            if line["id"] not in examples.get(line["task"], {}):
                return Check("grades", False, f"{path}: {line['id']} is no test item of {line['task']}")
        for name, task in tasks.items():
            of_task = [line for line in lines if line["task"] == name]
            found = earned(task, examples[name], of_task, made.run.style, made.run.machine.execution)
            for line, score in zip(of_task, found, strict=True):
                item = examples[name][line["id"]]
                if score not in (None, line["score"]):
                    again = ", or its program does not do the same every time" if task.format.executes(item) else ""
                    return Check(
                        "grades", False, f"{path}: {line['id']} has another score than its output earns{again}"
                    )
            left += found.count(None)
            count += len(found) - found.count(None)
    if left:
        detail = f"{count} outputs graded again; the programs of {left} were not run: --allow-code-execution runs them"
        return Check("grades", None, detail)
    return Check("grades", True, f"{count} outputs graded again")


def rerun(folder: Path, arm: str, machine: Machine | None = None) -> list[Check]:
    """Make the deltas of one arm again, location included, and compare them with the recorded ones byte for byte.

    Raises:
        ConfigError: the certificate has no such arm.
    """
    import torch

    read_certificate(folder)
    run = Run.resume(folder, machine)
    made = Certification(run)
    if arm not in made.arms:
        raise ConfigError(f"--rerun {arm!r}: this certificate has no such arm; {nearest(arm, made.arms)}")
    checks, before = [], torch.get_num_threads()
    with tempfile.TemporaryDirectory() as temporary:
        run.memo = Path(temporary)
        jobs = made.jobs()
        if run.method.locate is not None:  # before the target is held: the two are never in memory together
            wrong = jobs.setting.wrong_examples if arm == "wrong_task" else None
            run.method.locate(run.source, run.target, run.task.located_with(wrong), run.options, run.style)
        try:
            for seed in made.seeds:
                path = Job("transfer", arm, None, seed).path(made.folder)
                record = read_record(path)
                if not {"threads", "lr", "delta", "device"} <= record.keys():
                    raise DataError(f"{path}: missing or damaged; run `pkt certify` again, what is done is kept")
                torch.set_num_threads(record["threads"])  # sums of another number of threads round differently
                again = Path(temporary) / "delta.safetensors"
                jobs.delta(Job("transfer", arm, record["lr"], seed)).save(again)
                same = file_digest(again) == record["delta"]
                where = "" if record["device"] == run.target.torch_device else f", made on {record['device']}"
                detail = "the same bytes" if same else f"other bytes than recorded in {path}{where}"
                checks.append(Check(f"{arm}, seed {seed}, again", same, detail))
        finally:
            torch.set_num_threads(before)
            jobs.close()
    return checks
