"""The table of a sweep, from its run folders alone: scores, changes against the target, the loss on the valid split, what is best.

Whatever was interrupted, the same folders give the same bytes. Seconds, operations and memory are in a table of their own, for
they do not repeat.

S seeds, I items.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pkt.certify.statistics import Spread, holm, spread
from pkt.comparison_entry import REAL, entry, stage_costs
from pkt.files import read_record
from pkt.report.data import read
from pkt.report.sweep_words import sentences
from pkt.stages import Stages
from pkt.sweeping.jobs import VALID
from pkt.tasks.chance import chance_of
from pkt.tier_scores import Items, levels_of, read_items

if TYPE_CHECKING:
    from pkt.sweeping.engine import Planned
    from pkt.sweeping.grid import Sweep

FORMAT, NAME = "sweep 1", "sweep.json"
Row = dict[str, Any]


@dataclass
class Found:
    """A point with what its folders hold."""

    row: Row
    items: Items | None = None
    """Of the result at all seeds, in the tier that decides."""
    target: Items | None = None
    level: float = 0.95


def table(
    sweep: Sweep, runs: Sequence[Planned], errors: Mapping[Path, str], folder: Path, *, certify: bool
) -> dict[str, Any]:
    """The content of `sweep.json`.

    Args:
        errors: messages by the folder of the run that failed.
    """
    found = [_found(of_point, errors, folder, certify=certify) for of_point in by_point(runs)]
    groups = [_group(rows) for rows in _comparable(found)]
    failed = sum(one.row["error"] is not None for one in found)
    whole: dict[str, Any] = {
        "format": FORMAT,
        "question": sweep.question,
        "recipes": [Path(name).stem for name in sweep.recipes],
        "over": sweep.over,
        "set": sweep.set,
        "seeds": max(len(one.row["seeds"]) for one in found),
        "certified": certify,
        "points": [one.row for one in found],
        "failed": failed,
        "groups": groups,
    }
    return {**whole, "sentences": sentences(whole)}


def by_point(runs: Sequence[Planned]) -> list[list[Planned]]:
    """Runs of one point together, in the order of the grid."""
    found: dict[str, list[Planned]] = {}
    for one in runs:
        found.setdefault(one.point.name, []).append(one)
    return list(found.values())


def _found(runs: Sequence[Planned], errors: Mapping[Path, str], folder: Path, *, certify: bool) -> Found:
    recipe, point = runs[0].recipe, runs[0].point
    at = runs[0].folder if certify else runs[0].folder.parent
    row: Row = {
        "point": point.name,
        "recipe": recipe.name,
        "settings": point.settings,
        "folder": str(at.relative_to(folder)),
        "method": recipe.method["name"],
        "task": recipe.task.name,
        "source": recipe.source.name,
        "target": recipe.target.name,
        "seeds": [one.recipe.seed for one in runs],
        "error": next((errors[one.folder] for one in runs if one.folder in errors), None),
        "tier": None,
        **{key: {} for key in ("scores", "target_scores", "source_scores", "chance")},
        **dict.fromkeys(("change", "against_best", "valid_loss", "labels", "trained_parameters", "steps")),
        **dict.fromkeys(("source_parameters", "target_parameters", "verdict", "preliminary", "harm", "gain")),
    }
    found = Found(row, level=recipe.certificate.level)
    if row["error"] is None:
        _fill(found, runs, recipe.certificate.tier, certify=certify)
    return found


def _fill(found: Found, runs: Sequence[Planned], tier: str | None, *, certify: bool) -> None:
    """What the folders of a point say."""
    row, folders = found.row, [one.folder for one in runs]
    task = row["task"]
    if certify:
        arms = folders[0] / "arms"
        said = entry(folders[0])
        row["seeds"] = _certified_seeds(runs)
        result = read_items([arms / REAL / f"seed-{seed}.jsonl" for seed in row["seeds"]], task)
        models = {role: read_items([arms / role / "model.jsonl"], task) for role in ("target", "source")}
        row |= {key: getattr(said, key) for key in ("verdict", "preliminary", "harm", "gain")}
        row |= {key: getattr(said.costs, key) for key in ("labels", "trained_parameters", "steps")}
        row["valid_loss"] = _searched_loss(arms)
    else:
        paths = [folder / "scores.jsonl" for folder in folders]
        result = read_items(paths, task, "result")
        models = {role: read_items(paths[:1], task, role) for role in ("target", "source")}
        summary = read(folders[0]).summary
        row |= {key: summary.get(key) for key in ("labels", "trained_parameters", "steps")}
        row["valid_loss"] = _loss([read_record(folder / VALID).get("loss") for folder in folders])
    about = read(folders[0]).summary
    row |= {f"{role}_parameters": about.get(role, {}).get("parameters") for role in ("source", "target")}  # type: ignore[attr-defined]
    tiers = levels_of(result)
    row["tier"] = tier or ("new" if "new" in tiers else "all")
    row["scores"] = {name: asdict(level) for name, level in tiers.items()}
    for role, items in models.items():
        row[f"{role}_scores"] = {name: asdict(level) for name, level in levels_of(items).items()}
    row["chance"] = {name: known for name in tiers if (known := chance_of(task, name))}
    if not certify:  # each seed's own: where rounding differs from seed to seed, the target was scored in another dtype
        models["target"] = read_items(paths, task, "target")
    found.items, found.target = result.of_tier(row["tier"]), models["target"].of_tier(row["tier"])
    row["change"] = difference(found.items, found.target, found.level)


def _certified_seeds(runs: Sequence[Planned]) -> list[int]:
    recipe = runs[0].recipe
    return [recipe.seed + i for i in range(recipe.certificate.seeds)]


def _loss(losses: Sequence[float | None]) -> Row | None:
    """Mean over seeds, where all are known."""
    known = [loss for loss in losses if loss is not None]
    return {"mean": sum(known) / len(known), "by_seed": known} if known and len(known) == len(losses) else None


def _searched_loss(arms: Path) -> Row | None:
    """The loss at the learning rate that a certificate chose, of one seed that is not scored; None where it searched none."""
    record = read_record(arms / REAL / "learning_rate.json")
    return _loss([point["loss"] for point in record.get("curve", []) if point["lr"] == record["lr"]])


def difference(one: Items, two: Items, level: float) -> Row | None:
    """Mean of `one - two` with its interval, paired by item and seed, clustered by unit.

    One seed has no spread to know: then the interval is that of units alone. Less than two units have none.
    """
    made = _spread(one, two)
    if made is None:
        return None
    low, high = made.interval(level)
    return {"mean": made.mean, "low": low, "high": high, "p": made.p_value(), "level": level}


def _spread(one: Items, two: Items) -> Spread | None:
    if one.ids != two.ids or len(set(one.units)) < 2:
        return None
    seeds = max(2, len(one.scores_SI))  # the same row twice: no variance between seeds, and that of units unchanged
    rows = [
        np.broadcast_to(items.scores_SI, (seeds, len(one.ids))) if len(items.scores_SI) == 1 else items.scores_SI
        for items in (one, two)
    ]
    return spread(rows[0], rows[1], one.units)


def _comparable(found: Sequence[Found]) -> list[list[Found]]:
    """Points that were scored on the same items, together; those that failed are in none."""
    groups: dict[tuple[Any, ...], list[Found]] = {}
    for one in found:
        if one.items is not None:
            key = (one.row["task"], one.row["target"], one.row["tier"], tuple(one.items.ids))
            groups.setdefault(key, []).append(one)
    return list(groups.values())


def _group(found: Sequence[Found]) -> Row:
    """What is best among points that can be compared, and which differ from the target and from the best; fills these into the rows.

    p-values are adjusted by Holm's method: against the target for the number of points, against the best for that of all pairs, since which
    pairs are looked at depends on which point scored best.
    """
    first = found[0].row
    tier = first["tier"]
    best = max(found, key=lambda one: one.row["scores"][tier]["score"])  # the first of equals
    _adjust([one.row["change"] for one in found], len(found))
    others = [one for one in found if one is not best]
    for one in others:
        assert one.items is not None
        assert best.items is not None
        one.row["against_best"] = difference(one.items, best.items, one.level)
    _adjust([one.row["against_best"] for one in others], math.comb(len(found), 2))
    losses = [(one.row["valid_loss"]["mean"], one) for one in found if one.row["valid_loss"]]
    chosen = min(losses, key=lambda pair: pair[0])[1].row["point"] if len(losses) == len(found) else None
    return {
        "task": first["task"],
        "target": first["target"],
        "tier": tier,
        "points": [one.row["point"] for one in found],
        "best": best.row["point"],
        "chosen_by_valid_loss": chosen,
    }


def _adjust(differences: Sequence[Row | None], family: int) -> None:
    """Add Holm's adjusted p-values.

    Args: family number of hypotheses.
    """
    known = [one for one in differences if one is not None]
    for one, p in zip(known, holm([one["p"] for one in known], family), strict=True):
        one["p_holm"] = p


def costs(runs: Sequence[Planned], errors: Mapping[Path, str], *, certify: bool) -> list[Row]:
    """The content of `costs.json`: what making the delta of a point once took, as a mean over its seeds. It does not repeat."""
    found = []
    for of_point in by_point(runs):
        done = [one for one in of_point if one.folder not in errors]
        each = [
            asdict(entry(one.folder).costs if certify else stage_costs(Stages(one.folder).records())) for one in done
        ]
        row: Row = {"point": of_point[0].point.name}
        for key in ("seconds", "flop", "peak_memory_gib"):
            known = [one[key] for one in each if one[key] is not None]
            row[key] = sum(known) / len(known) if known and len(known) == len(each) else None
        found.append(row)
    return found
