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
from pkt.errors import ConfigError, DataError
from pkt.evidence import FORMAT, certificate, read_lines
from pkt.jobs import Job
from pkt.models.checkpoint import file_digest
from pkt.registry import nearest
from pkt.run import Machine, Run


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
        return [*_compare(stated, certificate(made)), _order(made), _deltas(made, stated), *_grades(made)]
    except DataError as e:
        return [Check("files", False, str(e))]


def _compare(stated: dict[str, Any], found: dict[str, Any]) -> Iterator[Check]:
    """The stated certificate beside the one that the folder gives now."""

    def same(name: str, one: Any, two: Any, detail: str) -> Check:
        different = list(_differences(one, two))
        return Check(name, not different, detail if not different else f"differs: {', '.join(different[:4])}")

    one, two = stated.get("code", {}), found["code"]
    if one.get("sources") == two["sources"]:
        yield Check("code", True, f"pkt {two['pkt']}, same source files")
    else:
        yield Check(
            "code", None, f"made by pkt {one.get('pkt')}, commit {one.get('commit')}; checked by another version"
        )
    for role in ("source", "target"):
        yield same(f"{role} weights", stated.get(role), found[role], found[role]["weights"][:16])
    hashes, now = stated.get("hashes", {}), found["hashes"]
    yield same("recipe", hashes.get("recipe"), now["recipe"], now["recipe"][:16])
    yield same("data", hashes.get("data"), now["data"], ", ".join(now["data"]))
    yield same("scores of target and source", hashes.get("scores"), now["scores"], "2 files")
    known = {row.get("arm"): row for row in stated.get("arms", []) if isinstance(row, dict)}
    for row in found["arms"]:
        if row["reason"] is None:
            then = known.get(row["arm"], {}).get("hashes")
            yield same(row["arm"], then, row["hashes"], f"learning rate and {len(row['hashes']['scores'])} score files")
    rest = [{k: v for k, v in c.items() if k not in ("code", "hashes", "source", "target")} for c in (stated, found)]
    yield same("verdict", rest[0], rest[1], f"{found['verdict']}, recomputed from the score files")


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


def _order(made: Certification) -> Check:
    """Every arm's learning rate was fixed before the arm was scored."""
    path = made.folder / "order.jsonl"
    fixed: dict[str, int] = {}
    scored: dict[tuple[str, int], int] = {}
    for i, line in enumerate(read_lines(path)):
        if "seed" in line:
            scored[line["arm"], line["seed"]] = i
        elif line["event"].startswith("learning rate"):
            fixed[line["arm"]] = i
    late = [
        f"{arm} seed {seed}"
        for arm in made.arms
        for seed in made.seeds
        if not fixed.get(arm, math.inf) < scored.get((arm, seed), -1)
    ]
    if late:
        return Check("order", False, f"scored before its learning rate was fixed, or not noted: {late[0]} in {path}")
    return Check("order", True, "every learning rate was fixed before its arm saw a test item")


def _deltas(made: Certification, stated: dict[str, Any]) -> Check:
    """The kept deltas are those of the certificate."""
    wrong, held = [], 0
    for row in stated.get("arms", []):
        for seed, digest in zip(made.seeds, row.get("hashes", {}).get("deltas", []), strict=False):
            path = Job("transfer", row["arm"], None, seed).path(made.folder).with_suffix(".safetensors")
            if path.is_file():
                held += 1
                wrong += [str(path)] if file_digest(path) != digest else []
            elif made.cfg.keep_deltas:
                wrong.append(f"{path} (missing)")
    if wrong:
        return Check(
            "deltas", False, f"changed since: {wrong[0]}" + (f" and {len(wrong) - 1} more" if wrong[1:] else "")
        )
    return Check("deltas", True if held else None, f"{held} files" if held else "none were kept")


def _grades(made: Certification) -> Iterator[Check]:
    """The scores follow from the outputs."""
    task = made.run.task
    examples = {e.id: e for e in task.split("test")}
    wrong, count = [], 0
    for job in [Job("model", "target"), *(Job("transfer", arm, None, s) for arm in made.arms for s in made.seeds)]:
        path = job.path(made.folder).with_suffix(".jsonl")
        for line in read_lines(path):
            if line["task"] == task.name:
                count += 1
                if float(task.format.grade(examples[line["id"]], line["output"])) != line["score"]:
                    wrong.append(f"{path}: {line['id']}")
    detail = f"{count} outputs graded again" if not wrong else f"{wrong[0]} has another score than its output earns"
    yield Check("grades", not wrong, detail)


def rerun(folder: Path, arm: str, machine: Machine | None = None) -> list[Check]:
    """Make the deltas of one arm again, and compare them with the recorded ones byte for byte.

    Raises:
        ConfigError: the certificate has no such arm.
    """
    import torch

    read_certificate(folder)
    made = Certification(Run.resume(folder, machine))
    if arm not in made.arms:
        raise ConfigError(f"--rerun {arm!r}: this certificate has no such arm; {nearest(arm, made.arms)}")
    made.locate()
    jobs, checks = made.jobs(), []
    before = torch.get_num_threads()
    try:
        for seed in made.seeds:
            path = Job("transfer", arm, None, seed).path(made.folder)
            record = json.loads(path.read_text(encoding="utf-8"))
            torch.set_num_threads(record["threads"])  # sums of another number of threads round differently
            delta = jobs.delta(Job("transfer", arm, record["lr"], seed))
            with tempfile.TemporaryDirectory() as temporary:
                again = Path(temporary) / "delta.safetensors"
                delta.save(again)
                same = file_digest(again) == record["delta"]
            detail = "the same bytes" if same else f"other bytes than recorded in {path}"
            checks.append(Check(f"{arm}, seed {seed}, again", same, detail))
    finally:
        torch.set_num_threads(before)
        jobs.close()
    return checks
