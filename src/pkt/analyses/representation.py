"""How alike two models' representations are, layer by layer (published as heat maps of Llama-2-7B and 13B, arXiv:2505.14436).

1. Token positions are drawn once and are the same in all models: `similarity/positions.py`. Texts are prompts with responses.
2. Every model is in memory once, alone, and leaves one Gram per layer and module: `similarity/grams.py`.
3. From the Grams, for every pair of a source and a target layer: linear CKA, debiased and biased, RSA, and the R2 of ridge
   regression on held-out positions: `similarity/measures.py`.
4. Each is taken again with permuted positions, and without each of several groups of texts: `similarity/resampling.py`.
5. The same for a model of the source's config with new weights: models that read the same tokens are alike for that alone, which
   a permutation of positions does not tell. Then for a specialist, if one is named. All are compared on the same positions and
   draws, and so are their differences: the source less the untrained model, the specialist less the source.
"""

from __future__ import annotations

import logging
import time
from typing import Any, Literal

from pydantic import Field, field_validator
from torch import Generator

from pkt.analyses.base import AnalysisConfig, Result, Row, analysis
from pkt.config import ModelSection
from pkt.errors import ConfigError, DataError
from pkt.models.lm import LM
from pkt.report.representation_words import sentence
from pkt.run import Run
from pkt.similarity.estimates import Design, Source, estimates
from pkt.similarity.grams import Grams, Untrained, num_features
from pkt.similarity.positions import PER_TEXT, Positions, draw_positions
from pkt.similarity.representation_rows import best_rows, difference_row, difference_rows, module_row, pair_rows
from pkt.tasks.base import Example, fingerprint

log = logging.getLogger(__name__)

TEXTS = 12
"""Fewer texts give no interval and no held-out ones."""
SOURCE, SPECIALIST, UNTRAINED, TARGET = "source", "specialist", "untrained", "target"
LESS = ((SOURCE, UNTRAINED), (SPECIALIST, SOURCE))
"""The differences that are taken."""


class RepresentationConfig(AnalysisConfig):
    """Options of the analysis of representation similarity."""

    positions: int = Field(
        1024,
        ge=TEXTS * PER_TEXT,
        le=8192,
        description="token positions n; a Gram takes 4 n^2 bytes on disk, and one module's in memory about 60 n^2 for each layer of "
        "both models",
    )
    splits: list[Literal["extract", "align", "train", "valid", "test"]] = Field(
        ["extract", "align", "train"], min_length=1, description="splits whose prompts with responses are the texts"
    )
    modules: list[Literal["up", "down", "v", "o", "residual"]] = Field(
        ["up", "down", "v", "o", "residual"],
        min_length=1,
        description="outputs that are compared; `residual` is the stream after a layer",
    )
    measures: list[Literal["cka", "cka_biased", "rsa", "ridge"]] = Field(
        ["cka", "cka_biased", "rsa", "ridge"],
        min_length=1,
        description="`cka` is debiased; the first one named leads the report",
    )
    ridge: float = Field(
        0.01, gt=0, description="ridge of the maps, relative to the mean variance of the source's features"
    )
    permutations: int = Field(100, ge=20, le=10000, description="permutations of positions that chance is judged by")
    groups: int = Field(12, ge=5, le=1000, description="groups of texts that are left out in turn for the intervals")
    untrained: bool = Field(
        default=True,
        description="set a model of the source's config with new weights beside the source; they are drawn in float32 in the CPU's memory",
    )
    specialist: ModelSection | None = Field(
        None, description="another source, `nano/...`, a folder or a name on the hub, to set beside the recipe's"
    )

    @field_validator("splits", "modules", "measures")
    @classmethod
    def _distinct(cls, value: list[str]) -> list[str]:
        if len(set(value)) < len(value):
            raise ValueError("name each once")
        return value

    @field_validator("specialist", mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


def models_of(run: Run, cfg: RepresentationConfig) -> dict[str, LM]:
    """By role; the target, whose tokens the texts are written in, comes last."""
    found = {SOURCE: run.source}
    if cfg.specialist:
        found[SPECIALIST] = LM(
            cfg.specialist.name,
            revision=cfg.specialist.revision,
            device=run.machine.device,
            dtype=run.recipe.dtype,
            memo=run.memo,
        )
    if cfg.untrained:
        found[UNTRAINED] = Untrained(run.source, run.recipe.seed)
    return {**found, TARGET: run.target}


def _examples(run: Run, cfg: RepresentationConfig) -> list[Example]:
    return [example for name in cfg.splits for example in run.task.split(name)]


def _positions(run: Run, cfg: RepresentationConfig, gen: Generator) -> Positions:
    found = draw_positions(list(models_of(run, cfg).values()), _examples(run, cfg), run.style, cfg.positions, gen)
    if len(found.texts) < TEXTS:
        raise DataError(
            f"{run.task.name}: {len(found.texts)} texts give {len(found)} positions; expected {TEXTS} texts at least, for intervals; "
            f"name more splits with analysis.splits"
        )
    return found


def check(run: Run, cfg: RepresentationConfig) -> None:
    """Raise unless the models are ones that can be looked into, and the texts hold enough positions."""
    models = models_of(run, cfg)
    for lm in models.values():
        _ = lm.family
        lm.check()
    if cfg.specialist and models[SPECIALIST].identity == run.source.identity:
        raise ConfigError(
            f"analysis.specialist: {cfg.specialist.name} is the recipe's source itself; name another model, or leave it out"
        )
    _positions(run, cfg, Generator().manual_seed(run.recipe.seed))


def decides(run: Run, cfg: RepresentationConfig) -> list[Any]:
    specialist = models_of(run, cfg)[SPECIALIST].identity if cfg.specialist else []
    return [*(fingerprint(run.task.split(name)) for name in cfg.splits), *specialist]


@analysis(config=RepresentationConfig, paper="arXiv:2505.14436", version=1, decides=decides, check=check)
def representation(run: Run, cfg: RepresentationConfig, gen: Generator) -> Result:
    """How alike source and target represent the same tokens: CKA, RSA and ridge maps for every pair of layers."""
    models = models_of(run, cfg)
    fixed = _positions(run, cfg, gen)
    design = Design.draw(fixed.text, cfg.groups, cfg.permutations, gen)
    grams = {role: Grams(lm, side) for (role, lm), side in zip(models.items(), fixed.sides, strict=True)}
    for of_model in grams.values():
        of_model.prepare(cfg.modules)
    tables: dict[str, list[Row]] = {"modules": [], "best": [], "pairs": [], "differences": [], "layer_differences": []}
    for module in cfg.modules:
        target = grams[TARGET].stack(module)
        sources = {
            role: Source(grams[role].stack(module), num_features(lm.dims, module))
            for role, lm in models.items()
            if role != TARGET
        }
        for measure in cfg.measures:
            start = time.perf_counter()
            found = estimates(measure, sources, target, design, ridge=cfg.ridge)
            for role, estimate in found.items():
                at = {"role": role, "module": module, "measure": measure}
                tables["modules"].append({**at, **module_row(module, measure, estimate)})
                tables["best"] += [{**at, **row} for row in best_rows(estimate)]
                tables["pairs"] += [{**at, **row} for row in pair_rows(estimate)]
            for one, other in ((one, other) for one, other in LESS if {one, other} <= found.keys()):
                at = {"role": one, "less": other, "module": module, "measure": measure}
                tables["differences"].append({**at, **difference_row(found[one], found[other])})
                rows = difference_rows(found[one], found[other])
                tables["layer_differences"] += [{**at, **row} for row in rows]
            log.info("%s of %s: %.1f s", measure, module, time.perf_counter() - start)
    tables = {name: rows for name, rows in tables.items() if rows}
    return Result(sentence(tables), tables, [*_about(fixed, design), *fixed.notes])


def _about(fixed: Positions, design: Design) -> list[str]:
    """What a reader must know of the numbers."""
    held = int(design.held.sum())
    groups = int(design.group.max()) + 1
    return [
        f"{len(fixed)} token positions of {len(fixed.texts)} texts, the same in all models; the first of a text, and what opens an "
        f"earlier text too, are left out. Ridge maps are fitted on {len(fixed) - held} positions and scored on {held} of other texts.",
        f"Chance: {len(design.orders)} permutations, in which texts change places as wholes, and positions within them. "
        f"Intervals: 95 %, by leaving out each of {groups} groups of texts.",
    ]
