"""The recipe at several seeds: its scores, how far its deltas point the same way, and their range against the target's weights."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pkt.evaluation.statistics import summarise
from pkt.extract.jaccard import chance_of_sets, jaccard
from pkt.inject.changes import Lines
from pkt.inject.cosine import cosine, products
from pkt.inject.delta import Delta, Key
from pkt.inject.ranges import ranges
from pkt.scores import Scores
from pkt.stability.located import ALL
from pkt.tasks.chance import chance_of

if TYPE_CHECKING:
    from pkt.config import Recipe
    from pkt.models.lm import LM
    from pkt.run import Run

Row = dict[str, Any]


def seed_recipe(recipe: Recipe, seed: int) -> Recipe:
    """The recipe at a seed, scored on the items that its own seed draws. Target and result are scored where the recipe scores anything."""
    asked = {"arms": ["target", "result"] if recipe.evaluate.arms else [], "seed": recipe.scoring_seed}
    return recipe.model_copy(update={"seed": seed, "evaluate": recipe.evaluate.model_copy(update=asked)})


def seed_folder(folder: Path, seed: int) -> Path:
    return folder / "seeds" / f"seed-{seed}"


def run_seeds(run: Run, seeds: Sequence[int]) -> list[Path]:
    """Execute the recipe at every seed, as far as that is not done; located scores are shared. Returns their folders."""
    from pkt.execute import execute

    folders = [seed_folder(run.folder, seed) for seed in seeds]
    for seed, folder in zip(seeds, folders, strict=True):
        execute(seed_recipe(run.recipe, seed), folder, run.machine, run.memo)
    return folders


def seed_rows(seeds: Sequence[int], folders: Sequence[Path]) -> list[Row]:
    """Rows of the table `seeds`: score of the result and of the target by seed and tier."""
    rows = []
    for seed, folder in zip(seeds, folders, strict=True):
        found = {(row["arm"], row["tier"]): row for row in summarise(Scores(folder).lines())}
        for (arm, tier), row in found.items():
            if arm == "result":
                target = found["target", tier]
                rows.append(
                    {
                        "seed": seed,
                        "tier": tier,
                        "score": row["score"],
                        "target": target["score"],
                        "change": row["score"] - target["score"],
                        "item_error": row["standard_error"],
                        "items": row["num_items"],
                    }
                )
    return rows


def score_rows(by_seed: Sequence[Row], task: str) -> list[Row]:
    """Rows of the table `scores`: spread of the result's score over seeds, by tier.

    `item_error` is the standard error of one seed's score over items, the mean of all seeds'.
    """
    rows = []
    for tier in dict.fromkeys(row["tier"] for row in by_seed):
        held = [row for row in by_seed if row["tier"] == tier]
        scores, changes = ([row[name] for row in held] for name in ("score", "change"))
        errors = [row["item_error"] for row in held if row["item_error"] is not None]
        rows.append(
            {
                "tier": tier,
                "seeds": len(held),
                "mean": statistics.fmean(scores),
                "variance": statistics.variance(scores),
                "sd": statistics.stdev(scores),
                "min": min(scores),
                "max": max(scores),
                "range": max(scores) - min(scores),
                "target": statistics.fmean(row["target"] for row in held),
                "change": statistics.fmean(changes),
                "change_min": min(changes),
                "change_max": max(changes),
                "item_error": statistics.fmean(errors) if errors else None,
                "items": held[0]["items"],
                "chance": chance_of(task, tier),
            }
        )
    return rows


def delta_rows(seeds: Sequence[int], folders: Sequence[Path], target: LM) -> list[Row]:
    """Rows of the table `deltas`: cosine of the deltas of every two seeds, as a whole and by part, and overlap of their lines.

    Two deltas are in memory at a time.
    """
    rows = []
    for i, j in itertools.combinations(range(len(seeds)), 2):
        if j == i + 1:
            one = load(folders[i])
        rows += [{"one": seeds[i], "other": seeds[j], **row} for row in _compared(one, load(folders[j]), target)]
    return rows


def load(folder: Path) -> Delta:
    return Delta.load(folder / "delta.safetensors")


def _compared(one: Delta, other: Delta, target: LM) -> Iterator[Row]:
    found = products(one, other)
    parts = dict.fromkeys(part for _, part in found)
    for name in (ALL, *parts):
        held = {key: product for key, product in found.items() if name in (ALL, key[1])}
        value, random_sd = cosine(held.values())
        yield {
            "part": name,
            "cosine": value,
            "random_sd": random_sd,
            "entries": sum(product.sizes[0] for product in held.values()),
            **_lines(one, other, held, target),
        }


def _lines(one: Delta, other: Delta, keys: Mapping[Key, Any], target: LM) -> Row:
    """Jaccard index of the changed rows or columns, the mean over tensors; None where a change has no lines."""
    found, chances = [], []
    for key in keys:
        a, b = one.changes.get(key), other.changes.get(key)
        if isinstance(a, Lines) and isinstance(b, Lines) and a.axis == b.axis:
            found.append(jaccard(a.index.numpy(), b.index.numpy()))
            chances.append(chance_of_sets(len(a.index), len(b.index), target.shape(*key)[a.axis]).mean)
    return {
        "lines_jaccard": statistics.fmean(found) if found else None,
        "lines_chance": statistics.fmean(chances) if chances else None,
    }


def range_rows(seeds: Sequence[int], folders: Sequence[Path], target: LM) -> list[Row]:
    """Rows of the table `ranges`, by seed and tensor: see `pkt.inject.ranges`."""
    return [
        {"seed": seed, "layer": layer, "part": part, **row}
        for seed, folder in zip(seeds, folders, strict=True)
        for (layer, part), row in ranges(load(folder), target)
    ]


def chosen_layers(delta: Delta) -> dict[str, list[int]] | None:
    """The source layers that a delta was made from, by kind, as its method says; None where it does not."""
    said = delta.provenance
    if "layers" in said:
        return {kind: [source for source, _ in part["map"]] for kind, part in said["layers"].items()}
    if "blocks" in said:
        from pkt.stability.blocks import LAYERS

        return {LAYERS: said["blocks"]["layers"]}
    return None
