"""Stability: what changes in a method's result when only examples, seeds, the task or the dtype change (arXiv:2505.14436, section 5).

1. What the method locates is compared by the Jaccard index, in every layer and of both models: between single examples, between two random
   halves of the extract split (drawn anew by every seed), between tasks, between dtypes. Beside it stands what two random choices of the
   same sizes give, exactly (`extract/jaccard.py`).
2. How often each source layer is among the highest-scoring, by single examples and by halves.
3. The recipe is run at several seeds: spread of the scores, cosine of every two deltas (`inject/cosine.py`), overlap of changed lines.
4. Range of the deltas against the target's weights in the same entries (`inject/ranges.py`).

Neurons are those at the recipe's transfer rate. For methods that take blocks of a source, what is compared are the blocks' entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator
from torch import Generator

from pkt.analyses.base import AnalysisConfig, Result, Row, analysis
from pkt.checks import check as check_run
from pkt.checks import check_locatable
from pkt.config import OtherTask
from pkt.errors import ConfigError, DataError
from pkt.models.checkpoint import is_nano
from pkt.report.stability_words import sentence
from pkt.run import Run
from pkt.stability.comparisons import Pair, agreement_rows, all_pairs, halves, layer_rows
from pkt.stability.located import Located, Locations, locations_of
from pkt.stability.seeds import chosen_layers, delta_rows, load, range_rows, run_seeds, score_rows, seed_rows
from pkt.tasks.base import Task, fingerprint

Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16", "float16")


class StabilityConfig(AnalysisConfig):
    """Options of the stability analysis."""

    seeds: int = Field(5, ge=2, le=100, description="runs of the recipe, at its seed and those that follow")
    tasks: list[OtherTask] | None = Field(
        None,
        description="other tasks to locate on; null means the other embedded ones for an embedded task, and none elsewhere; [] none",
    )
    dtypes: list[Dtype] | None = Field(
        None, description="of both models when they locate; null means all that the device can use; [] leaves them out"
    )

    @field_validator("tasks", mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        return [{"name": v} if isinstance(v, str) else v for v in value] if isinstance(value, list) else value

    @field_validator("dtypes")
    @classmethod
    def _comparable(cls, value: list[Dtype] | None) -> list[Dtype] | None:
        if value and (len(set(value)) < 2 or len(set(value)) < len(value)):
            raise ValueError("expected two different ones at least, each once, or [] to leave them out")
        return value


def other_tasks(run: Run, cfg: StabilityConfig) -> list[Task]:
    """The tasks to locate on beside the recipe's.

    Raises:
        ConfigError: one is the recipe's own, or named twice. DataError: its data is missing.
    """
    from pkt.nano.world import TASKS
    from pkt.tasks.sources import task

    own, sections = run.task.name, cfg.tasks
    if sections is None:
        names = [f"nano/{name}" for name in TASKS] if is_nano(own) else []
        sections = [OtherTask(name=name) for name in names if name != own]
    asked = [own, *(section.name for section in sections)]
    if len(set(asked)) < len(asked):
        raise ConfigError(f"analysis.tasks: {', '.join(asked[1:])}: name other tasks than {own}, each once")
    found = []
    for section in sections:
        data = run.recipe.task.data if section.data is None and not is_nano(section.name) else section.data
        other = task(section.name, data)
        other = other.without_test_items() if section.drop_overlap else other
        if not other.split("extract"):
            raise DataError(f"analysis.tasks: split extract of {other.name} is empty; there is nothing to locate with")
        asked_for = run.recipe.task.labels, run.recipe.task.extract
        limited = asked_for != (None, None) and "extract" in run.method.splits
        found.append(other.first({"extract": len(run.task.split("extract"))}) if limited else other)
    return found


def dtypes_of(run: Run, cfg: StabilityConfig) -> list[Dtype]:
    """The dtypes to locate in.

    Raises:
        ConfigError: the device lacks one that is asked for.
    """
    device = run.source.torch_device
    for dtype in cfg.dtypes or ():
        if not can_use(dtype, device):
            raise ConfigError(f"analysis.dtypes: {device} cannot compute in {dtype} here; leave it out")
    found = [dtype for dtype in DTYPES if can_use(dtype, device)] if cfg.dtypes is None else cfg.dtypes
    return found if len(found) > 1 else []


def can_use(dtype: str, device: str) -> bool:
    """Whether a device multiplies matrices of a dtype."""
    import torch

    try:
        x = torch.ones(2, 2, dtype=getattr(torch, dtype), device=device)
        return bool((x @ x).sum().item() == 8)
    except (RuntimeError, TypeError):
        return False


def check(run: Run, cfg: StabilityConfig) -> None:
    """Raise PktError where the recipe cannot run, or a task or a dtype cannot be located with."""
    check_run(run)
    if locations_of(run) is None:
        if cfg.tasks or cfg.dtypes:
            option = "tasks" if cfg.tasks else "dtypes"
            raise ConfigError(f"analysis.{option}: {run.method.name} {_nothing_located(run)}; leave it out")
        return
    for task in other_tasks(run, cfg):
        check_locatable(run, task)
    dtypes_of(run, cfg)


def decides(run: Run, cfg: StabilityConfig) -> list[Any]:
    """Data, how results are scored and exported, the other tasks' data, and the dtypes."""
    splits = [*run.method.reads(run.options), "test"]
    evaluate = run.recipe.evaluate.model_dump(mode="json")
    found = [run.inputs(*splits), run.evaluation(), evaluate, run.recipe.export.model_dump(mode="json")]
    if locations_of(run) is None:
        return found
    return [*found, [[t.name, fingerprint(t.location)] for t in other_tasks(run, cfg)], dtypes_of(run, cfg)]


@analysis(config=StabilityConfig, paper="arXiv:2505.14436", version=1, decides=decides, check=check)
def stability(run: Run, cfg: StabilityConfig, gen: Generator) -> Result:
    """How far located neurons, scores and deltas stay the same between examples, seeds, tasks and dtypes."""
    seeds = [run.recipe.seed + i for i in range(cfg.seeds)]
    locations, tables = locations_of(run), {}
    notes = [] if locations else [f"{run.method.name} {_nothing_located(run)}: only seeds are compared."]
    found = _located(locations, run, cfg, seeds, notes) if locations else {}
    if locations:
        tables = _agreement(locations, found, gen)
    folders = run_seeds(run, seeds)
    if locations:
        tables["layers"] = _layers(run, found, folders[0])
    by_seed = seed_rows(seeds, folders)
    tables |= {
        "scores": score_rows(by_seed, run.task.name) if by_seed else [],
        "seeds": by_seed,
        "deltas": delta_rows(seeds, folders, run.target),
        "ranges": range_rows(seeds, folders, run.target),
    }
    tables = {name: rows for name, rows in tables.items() if rows}
    return Result(sentence(tables, locations.what if locations else "", run.method.name), tables, notes)


def _nothing_located(run: Run) -> str:
    return "locates nothing" if run.method.locate is None else "locates in a way of its own"


def _located(
    locations: Locations, run: Run, cfg: StabilityConfig, seeds: Sequence[int], notes: list[str]
) -> dict[str, dict[str, Located]]:
    """What is located when asked in other ways: comparison -> name -> choice. Halves of a seed end in `, a` and `, b`."""
    num = len(run.task.location)
    found = {"examples": {str(i): locations.on_examples([i]) for i in range(num)}}
    found["halves"] = {
        f"seed {seed}, {name}": locations.on_examples(half)
        for seed in seeds
        for name, half in zip("ab", halves(num, seed), strict=True)
        if half
    }
    if num < 2:
        notes.append("There is one example to locate with: neither single examples nor halves can be compared.")
    if locations.is_drawn:
        drawn = {f"seed {seed}": located for seed in seeds if (located := locations.draws(seed))}
        notes.append(
            f"{locations.what} are drawn at random here: "
            + ("random draws are compared, one for each seed; " if drawn else "they are not compared; ")
            + "only layers depend on the examples."
        )
        return found | {"draws": drawn}
    others = other_tasks(run, cfg)
    if others:
        found["tasks"] = {task.name: locations.on_task(task) for task in (run.task, *others)}
    dtypes = dtypes_of(run, cfg)
    if dtypes:
        found["dtypes"] = {dtype: locations.in_dtype(dtype) for dtype in dtypes}
    missing = [dtype for dtype in DTYPES if cfg.dtypes is None and dtype not in dtypes]
    if missing:
        notes.append(f"Left out, for {run.source.torch_device} cannot compute in it: {', '.join(missing)}.")
    return found


def _agreement(locations: Locations, found: dict[str, dict[str, Located]], gen: Generator) -> dict[str, list[Row]]:
    """The tables `jaccard` and `pairs`; single examples are in the first alone."""
    one = list(found["halves"].items())
    of_seeds = [Pair(a, b, (x, y)) for (a, x), (b, y) in zip(one[::2], one[1::2], strict=True)]
    compared = {
        "examples": [] if locations.is_drawn else all_pairs(found["examples"], gen),
        "seeds": [] if locations.is_drawn else of_seeds,
        "draws": all_pairs(found.get("draws", {})),
        "tasks": all_pairs(found.get("tasks", {})),
        "dtypes": all_pairs(found.get("dtypes", {})),
    }
    by_place, by_pair = [], []
    for between, pairs in compared.items():
        places, names = agreement_rows(locations, between, pairs)
        by_place += places
        by_pair += names if between != "examples" else []
    return {"jaccard": by_place, "pairs": by_pair}


def _layers(run: Run, found: dict[str, dict[str, Located]], folder: Path) -> list[Row]:
    """The table `layers`: beside the counts, the layers that the delta of the recipe's own seed was made from."""
    examples, of_halves = (list(found[name].values()) for name in ("examples", "halves"))
    own = chosen_layers(load(folder)) or {}
    return layer_rows(examples, of_halves, own, run.source.dims.layers)
