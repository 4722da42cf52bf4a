"""The Python interface: the stages as functions on handles, for use without a recipe."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pkt.config import validate
from pkt.methods import METHODS
from pkt.models.lm import LM
from pkt.tasks.base import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pkt.evaluation.execution import Execution
    from pkt.inject.delta import Delta
    from pkt.inject.export import Kept
    from pkt.machine import Machine
    from pkt.tasks.protocol import Protocol


def transfer(
    method: str, source: LM, target: LM, task: Task, *, style: str = "tulu", seed: int = 0, **options: Any
) -> Delta:
    """Run a method: two models and a task to one `Delta`. Both models stay as they were.

    Args:
        style: prompt style, `tulu`, `chat_template` or `plain`.
        options: the method's own, as `pkt methods NAME` lists them.

    Raises:
        PktError: an option, the pair or the data is wrong.
    """
    from torch import Generator

    found = METHODS.get(method)
    cfg = validate(found.config, options, f"transfer({method!r})")
    return found(source, target, task, cfg, Generator().manual_seed(seed), style=style)


@contextmanager
def injected(target: LM, delta: Delta) -> Iterator[PreTrainedModel]:
    """The loaded target, a plain transformers model, running as if `delta` were in its weights."""
    from pkt.inject.apply import injected as hooked

    with target.loaded() as model, hooked(model, delta):
        yield model


def export(delta: Delta, target: LM, out: str | Path, *, dtype: str = "auto", overwrite: bool = False) -> Kept:
    """Write the target with the delta as an ordinary checkpoint; returns what its dtype keeps of the delta.

    Args:
        overwrite: replace a model that is in `out`.
    """
    from pkt.inject.export import export as write

    return write(delta, target, Path(out), dtype=dtype, overwrite=overwrite)


def export_adapter(delta: Delta, target: LM, out: str | Path, *, overwrite: bool = False) -> None:
    """Write a delta of rows, columns or low rank as a PEFT adapter, which `PeftModel.from_pretrained` loads on the target.

    Args:
        overwrite: replace an adapter that is in `out`.
    """
    from pkt.inject.adapter import export_adapter as write

    write(delta, target, Path(out), overwrite=overwrite)


def read_adapter(folder: str | Path, target: LM, *, any_base: bool = False) -> Delta:
    """The change that a LoRA adapter makes to `target`; refused if a key of it would be dropped, or it was made for another base.

    Args:
        any_base: do not compare the base that the adapter names with the target.
    """
    from pkt.inject.adapter_reading import read_adapter as read

    return read(Path(folder), target, any_base=any_base)


def evaluate(
    model: LM,
    task: Task,
    *,
    delta: Delta | None = None,
    style: str = "tulu",
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    protocol: Protocol | None = None,
    execution: Execution | None = None,
) -> list[dict[str, Any]]:
    """Score a model, with a delta hooked in if one is given: one dict per test item (see `docs/run_folder.md`).

    Args:
        protocol: worked examples, samples and how they are drawn; None means the task's own.
        execution: leave to run code that the model has written; None means no leave.
    """
    from contextlib import nullcontext

    from pkt.evaluation.execution import NO_LEAVE
    from pkt.evaluation.harness import score
    from pkt.inject.apply import injected as hooked

    with model.loaded() as loaded, hooked(loaded, delta) if delta else nullcontext():
        return score(
            loaded,
            model.tokenizer,
            task,
            style=style,
            limit=limit,
            seed=seed,
            batch_size=batch_size,
            protocol=protocol,
            execution=execution or NO_LEAVE,
        )


def analyze(
    name: str, recipe: str, out: str | Path, *, set: Sequence[str] = (), machine: Machine | None = None, **options: Any
) -> dict[str, Any]:
    """Run an analysis of a recipe's pair and return the content of its JSON file; CSV files and a page stand beside it in `out`.

    Args:
        name: `representation`, `parametric` or `stability`. recipe: a file or a shipped name. set: KEY=VALUE overrides of the recipe.
        options: the analysis's own, as `pkt analyses NAME` lists them.

    Raises:
        PktError: an option, the recipe, the pair or the data is wrong.
    """
    from pkt.analyses import ANALYSES
    from pkt.analyzing import analyze as run
    from pkt.recipe_files import load_recipe

    cfg = validate(ANALYSES.get(name).config, options, f"analyze({name!r})")
    page = run(name, load_recipe(recipe, set), cfg, Path(out), machine)
    return json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
