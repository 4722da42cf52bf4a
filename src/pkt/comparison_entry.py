"""What one run folder holds for a comparison: scores, verdict and costs.

A certified folder gives the scores of its real source over all seeds, any other those of its one run. Costs are those of making
the delta once: location and alignment, neither export nor scoring.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NotRequired

from pydantic import ConfigDict, TypeAdapter
from typing_extensions import TypedDict

from pkt.errors import DataError
from pkt.models.checkpoint import is_nano
from pkt.report.certificate import Certificate, read_certificate
from pkt.report.data import checked, fitting, read
from pkt.report.verdict import harm_flag
from pkt.stages import MARK, SHARED, Stages, flop_of
from pkt.strict_yaml import read_yaml_file
from pkt.tasks.chance import chance_of
from pkt.tier_scores import AGAIN, Level, existing, fingerprint, levels, levels_of, ordered, read_items

REAL = "real_source"


@dataclass(frozen=True)
class Costs:
    """Of making the delta once; None where nobody counted."""

    labels: int | None = None
    trained_parameters: int | None = None
    steps: int | None = None
    flop: float | None = None
    seconds: float | None = None
    peak_memory_gib: float | None = None


@dataclass(frozen=True)
class Entry:
    """One run folder."""

    folder: str
    run: str
    """Name of the recipe, with what tells its folder from others where several have it."""
    recipe: str
    method: str
    task: str
    source: str
    target: str
    tier: str
    """The tier that decides."""
    state: str = "run"
    """`certified`, `run`, or what is missing."""
    scores: dict[str, Level] = field(default_factory=dict)
    """By tier, of what the method made."""
    target_scores: dict[str, Level] = field(default_factory=dict)
    source_scores: dict[str, Level] = field(default_factory=dict)
    chance: dict[str, float] = field(default_factory=dict)
    items: str | None = None
    """Tells apart the sets of items that were scored; None where the file of scores is gone or damaged."""
    verdict: str | None = None
    preliminary: bool = False
    harm: bool | None = None
    harm_flag: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    """What the method is told in words: its options that are neither numbers nor nothing."""
    series: str = ""
    """The options that tell a recipe's runs apart, and the recipe: what one line of a frontier shows."""
    asked: bool = False
    """Whether a certificate with control arms stands behind the verdict."""
    gain: dict[str, Any] | None = None
    """Source-attributable: `arm`, `mean`, `low`, `high`, at `level`."""
    level: float | None = None
    margin: float | None = None
    """Below which a gain is too small to matter."""
    costs: Costs = Costs()
    files: dict[str, str] = field(default_factory=dict)
    """In the folder: what the scores, the levels of target and source, the verdict and the costs were read from."""


class _Name(TypedDict):
    name: str


class _Method(_Name):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]


class _Certificate(TypedDict):
    tier: NotRequired[str | None]
    seeds: NotRequired[int]


class _Recipe(TypedDict):
    """What a comparison needs of `recipe.yaml`, whatever version wrote it."""

    name: str
    source: _Name
    target: _Name
    task: _Name
    method: _Method
    certificate: NotRequired[_Certificate]


class _Record(TypedDict):
    """What it needs of an arm's record."""

    peak_memory_gib: float
    trained_parameters: NotRequired[int | None]
    labels: NotRequired[int | None]
    steps: NotRequired[int | None]
    flop: NotRequired[float]
    delta_seconds: NotRequired[float]


_RECIPE: TypeAdapter[_Recipe] = TypeAdapter(_Recipe)
_RECORD: TypeAdapter[_Record] = TypeAdapter(_Record)


def entry(folder: Path) -> Entry:
    """What one folder holds; raises as `compare`."""
    path = folder / "recipe.yaml"
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give folders that `pkt run` or `pkt certify` made")
    if not path.is_file():
        raise DataError(
            f"{folder}: no run folder, for it has no recipe.yaml; give folders that `pkt run` or `pkt certify` made"
        )
    recipe = fitting(_RECIPE, read_yaml_file(path), path, "start the run anew in an empty folder")
    wanted = recipe.get("certificate", {})
    found = Entry(
        str(folder),
        recipe["name"],
        recipe["name"],
        recipe["method"]["name"],
        recipe["task"]["name"],
        recipe["source"]["name"],
        recipe["target"]["name"],
        wanted.get("tier") or "",
        options={
            key: value
            for key, value in recipe["method"].items()
            if isinstance(value, bool) or not isinstance(value, int | float | None)
        },
        series=recipe["name"],
    )
    certificate, is_marked = read_certificate(folder), (folder / MARK).is_file()
    seeds = _seeds(folder) if is_marked else []
    if certificate is not None:
        found = _certified(found, folder, certificate)
    elif (folder / "summary.json").is_file() and (scored := _scored(found, folder)).scores:
        found = scored
    elif seeds:
        found = _of_arms(found, folder, seeds)
    elif (records := Stages(folder).records()) or is_marked:
        found = replace(
            found,
            costs=stage_costs(records),
            state="unfinished: nothing is scored yet",
            files={"costs": "stages.json"},
        )
    else:
        raise DataError(f"{folder}: holds a recipe and no results; finish it with `pkt run` or `pkt certify`")
    if certificate is None and is_marked:
        number = f"{len(seeds)} of {wanted['seeds']}" if "seeds" in wanted else f"{len(seeds)}"
        found = replace(found, state=f"unfinished: {number} seeds")
    tiers = {**found.scores, **found.target_scores}
    tier = found.tier or ("new" if "new" in tiers or (not tiers and is_nano(found.task)) else "all")
    known = {t: guessed for t in tiers if (guessed := chance_of(found.task, t))}
    return replace(found, tier=tier, chance=known)


def _seeds(folder: Path) -> list[int]:
    """The seeds at which the real source is scored."""
    numbers = (path.stem.removeprefix("seed-") for path in (folder / "arms" / REAL).glob("seed-*.json"))
    return sorted(int(number) for number in numbers if number.isdecimal())


def _certified(found: Entry, folder: Path, certificate: Certificate) -> Entry:
    """With the verdict, over the seeds that the certificate names."""
    for key in ("method", "task", "source", "target"):
        ours, theirs = getattr(found, key), certificate[key]
        theirs = theirs if isinstance(theirs, str) else theirs["name"]
        if ours != theirs:
            raise DataError(
                f"{folder}: its certificate is of another recipe than recipe.yaml ({key} {theirs}, not {ours}); make it anew with `pkt certify`"
            )
    sources = [arm for arm in certificate["arms"] if arm["kind"] == "source"]
    left_out = any(arm["reason"] == "left out by certificate.arms" for arm in sources)
    found = _of_arms(found, folder, certificate["seeds"])
    return replace(
        found,
        state="certified",
        tier=certificate["items"]["tier"],
        verdict=certificate["verdict"],
        preliminary=certificate["preliminary"],
        harm=certificate["harm"],
        harm_flag=harm_flag(certificate),
        asked=not left_out or any(row["kind"] == "source" for row in certificate["comparisons"]),
        gain=dict(certificate["gain"]) if certificate["gain"] else None,
        level=certificate["level"],
        margin=certificate["margin"],
        files={**found.files, "verdict and gain": "certificate.json"},
    )


def _of_arms(found: Entry, folder: Path, seeds: Sequence[int]) -> Entry:
    """Scores and costs of the real source's arm at some seeds."""
    arms = folder / "arms"
    paths = [arms / REAL / f"seed-{seed}.json" for seed in seeds]
    records = [checked(_RECORD, existing(path), AGAIN) for path in paths]
    models = {role: arms / role / "model.jsonl" for role in ("target", "source")}
    scores = {role: levels([path], found.task) if path.is_file() else {} for role, path in models.items()}
    stages = Stages(folder).records()
    shared = {name: record for name, record in stages.items() if name in SHARED}
    flop = _mean([record.get("flop") for record in records])
    for record in shared.values():
        first = record.get("flop")
        flop = flop + first if flop is not None and first else None
    seconds = _mean([record.get("delta_seconds") for record in records])
    if seconds is not None:
        seconds += sum(record["seconds"] for record in shared.values())
    memory = [r["peak_memory_gib"] for r in (*records, *shared.values())]
    items = read_items([path.with_suffix(".jsonl") for path in paths], found.task)
    said = records[0]
    numbers = f"{seeds[0]}" if len(seeds) == 1 else f"{{{','.join(map(str, seeds))}}}"
    made = f"arms/{REAL}/seed-{numbers}.json"
    return replace(
        found,
        scores=levels_of(items),
        items=fingerprint(items.ids),
        target_scores=scores["target"],
        source_scores=scores["source"],
        costs=Costs(said.get("labels"), said.get("trained_parameters"), said.get("steps"), flop, seconds, max(memory)),
        files={
            "scores": f"{made}l",
            "target and source": ", ".join(f"arms/{role}/model.jsonl" for role in models if scores[role]) or "–",
            "costs": f"{made}, stages.json",
        },
    )


def _scored(found: Entry, folder: Path) -> Entry:
    """Scores and costs of one run, from its summary."""
    summary: Mapping[str, Any] = read(folder).summary
    by_arm: dict[str, dict[str, Level]] = {arm: {} for arm in ("result", "target", "source")}
    for row in summary.get("scores", []):
        level = Level(row["score"], row.get("standard_error"), row["num_items"], row["num_units"], row.get("seeds", 1))
        by_arm.setdefault(row["arm"], {})[row["tier"]] = level
    return replace(
        found,
        items=_items(folder / "scores.jsonl", found.task),
        scores=ordered(by_arm["result"]),
        target_scores=ordered(by_arm["target"]),
        source_scores=ordered(by_arm["source"]),
        costs=replace(
            stage_costs({cost["stage"]: cost for cost in summary.get("costs", [])}),
            **{key: summary.get(key) for key in ("labels", "trained_parameters", "steps", "flop")},
        ),
        files=dict.fromkeys(("scores", "target and source", "costs"), "summary.json"),
    )


def _items(path: Path, task: str) -> str | None:
    """What tells apart the sets of items, where the file can be read; the scores themselves are the summary's."""
    try:
        return fingerprint(read_items([path], task, "result").ids)
    except DataError:
        return None


def stage_costs(records: Mapping[str, Mapping[str, Any]]) -> Costs:
    """What location, preparation and alignment took, as far as the stages know."""
    made = [records[name] for name in (*SHARED, "align") if name in records]
    memory = [record["peak_memory_gib"] for record in made if record.get("peak_memory_gib") is not None]
    return Costs(
        flop=flop_of(records),
        seconds=sum(record["seconds"] for record in made) if "align" in records else None,
        peak_memory_gib=max(memory, default=None),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    """Of values that are all there."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
