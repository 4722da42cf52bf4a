"""An analysis of a recipe's pair, as a whole: numbers as JSON and CSV, and one page that shows them."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pkt.analyses import ANALYSES
from pkt.analyses.base import Analysis, AnalysisConfig
from pkt.config import Recipe, validate
from pkt.errors import ConfigError
from pkt.files import csv_text, locked, write_json, write_text
from pkt.machine import Machine
from pkt.recipe_files import load_recipe, override, parse_override
from pkt.run import Run
from pkt.stages import key_of

log = logging.getLogger(__name__)

FORMAT = "analysis 1"
READ = ("name", "source", "target", "task", "method", "dtype", "seed")
"""Sections of a recipe that analyses read."""
PREFIX = "analysis."
"""Of `--set` keys that are options of the analysis; all others are the recipe's."""


def split_overrides(name: str, overrides: Sequence[str]) -> tuple[AnalysisConfig, list[str]]:
    """An analysis's options, from `analysis.KEY=VALUE`, and the overrides that are the recipe's.

    Raises:
        ConfigError: no such analysis, or an option is wrong.
    """
    own: dict[str, Any] = {}
    override(own, [parse_override(text.removeprefix(PREFIX)) for text in overrides if text.startswith(PREFIX)])
    cfg = validate(ANALYSES.get(name).config, own, f"analysis {name}", "analysis")
    return cfg, [text for text in overrides if not text.startswith(PREFIX)]


def analyze(name: str, recipe: Recipe, cfg: AnalysisConfig, folder: Path, machine: Machine | None = None) -> Path:
    """Run an analysis in a folder, unless it is done, and write its numbers and its page.

    Returns: the page. Beside it are `NAME.json` and `NAME-TABLE.csv`.

    Raises:
        PktError: the recipe, the pair or the data is wrong.
    """
    from torch import Generator

    from pkt.report.analysis_page import write

    found = ANALYSES.get(name)
    run = _own_run(Run(recipe, folder, machine))
    found.check(run, cfg)
    path = folder / f"{name}.json"

    def make() -> list[Path]:
        result = found(run, cfg, Generator().manual_seed(run.recipe.seed))
        about = {
            "format": FORMAT,
            "analysis": name,
            "paper": found.paper,
            "recipe": run.recipe.name,
            "method": run.method.name,
            "task": run.task.name,
            "source": run.source.name,
            "target": run.target.name,
            "seed": run.recipe.seed,
            "options": cfg.model_dump(mode="json"),
        }
        write_json(path, {**about, **asdict(result)})
        tables = [folder / f"{name}-{table}.csv" for table in result.tables]
        for at, rows in zip(tables, result.tables.values(), strict=True):
            write_text(at, csv_text(rows))
        for left in set(folder.glob(f"{name}-*.csv")) - set(tables):
            left.unlink()  # a table of other options, which the numbers here know nothing of
        return [path, *tables]

    with locked(folder):
        run.start()
        run.stages.run(f"analyze {name}", _key(run, found, cfg), make)
        return write(json.loads(path.read_text(encoding="utf-8")), folder)


def _own_run(run: Run) -> Run:
    """The run that the folder holds, if it is this one in all that an analysis reads; this one where it holds none.

    Raises:
        ConfigError: it holds a run of another recipe, which would lose its own.
    """
    if not any((run.folder / name).exists() for name in ("delta.safetensors", "arms", "certificate.json")):
        return run
    held = Run.resume(run.folder, run.machine)
    if other := [section for section in READ if getattr(held.recipe, section) != getattr(run.recipe, section)]:
        path = run.folder / "recipe.yaml"
        raise ConfigError(
            f"{run.folder} holds a run of another recipe (another {', '.join(other)}); analyse {path} there, or give another folder"
        )
    return held


def _key(run: Run, found: Analysis, cfg: AnalysisConfig) -> str:
    """Hash of all that decides the numbers."""
    return key_of(
        "analyze",
        found.name,
        found.version,
        cfg.model_dump(mode="json"),
        [*run.source.identity, *run.target.identity],
        run.recipe.model_dump(mode="json", include={"method", "dtype", "seed"}),
        run.style,
        found.decides(run, cfg),
    )


def from_names(name: str, recipe: str, overrides: Sequence[str], folder: Path, machine: Machine | None = None) -> Path:
    """`analyze` by the names and overrides of a command line."""
    cfg, rest = split_overrides(name, overrides)
    return analyze(name, load_recipe(recipe, rest), cfg, folder, machine)
