"""Parametric similarity: how the starts of adapters lie to the target's own weights (LaTen, arXiv:2505.14436; METHODS 3 and 6).

1. Every method that trains adapters says what they start from (`Method.start`); Seeking with its variants, blocks at random included.
2. Per matrix W: cosine of `B0 A0` with W and with the remainder `W - B0 A0`, both as flat vectors, beside what norms alone predict
   (`similarity/weights.py: start_cosines`). The factor alpha / rank counts as a part of `B0 A0`.
3. Principal angles between the column (row) space of `B0 A0` and the span of W's r first left (right) singular vectors.
4. Energy: the share of the squared norm that rank r keeps, of W and of the blocks that starts are made from.
5. The cosines for other ranks, from one decomposition; alpha / rank stays what it is.

Starts with chance in them are drawn several times; the draws are the null that all others are held against.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor

from pkt.align.finetune import training_seed
from pkt.align.lora import LoraConfig, adapted
from pkt.align.low_rank import low_rank
from pkt.align.source_start import SourceStartConfig, check_pair, locate_blocks, location_key, source_blocks
from pkt.analyses.base import AnalysisConfig, Result, Row, analysis
from pkt.errors import ConfigError, DataError, PktError, UnsupportedModelError
from pkt.extract.pairing import check_comparable
from pkt.inject.changes import LowRank
from pkt.inject.delta import Key
from pkt.methods import METHODS
from pkt.methods.base import Method, fork
from pkt.methods.pissa import PissaConfig
from pkt.models.controls import RandomSource
from pkt.report.parametric_words import notes, sentence
from pkt.run import Run
from pkt.similarity.start_rows import angle_row, chance_rows, cosine_row
from pkt.similarity.starts import RANDOM_BLOCK, module_rows, prediction_rows, random_rows
from pkt.similarity.weights import energy_kept, start_cosines

STARTS: dict[str, tuple[str, dict[str, str]]] = {
    "lora": ("lora", {}),
    "pissa": ("pissa", {}),
    "seeking": ("seeking", {"blocks": "matrix"}),
    "seeking_coupled": ("seeking", {"blocks": "coupled"}),
    "random_init": ("random_init", {"blocks": "matrix"}),
    RANDOM_BLOCK: ("seeking", {"blocks": "random"}),
}
"""Name of a start -> method, and the options that make it."""
DRAWN = ("random_init", RANDOM_BLOCK)
"""Starts with chance in them."""
OF_BLOCKS = ("pissa", "seeking", "seeking_coupled", *DRAWN)
"""Starts that are best approximations of a matrix: the target's own for PiSSA, else a block."""
LORA_OPTIONS = ("rank", "alpha", "parts", "embeddings", "svd")


class ParametricConfig(AnalysisConfig):
    """Options of the parametric analysis. Those of the adapters count where the recipe's method has none."""

    ranks: list[int] = Field(
        [2, 4, 8, 16, 32], min_length=1, description="ranks of the sweep; a matrix leaves out those above its smaller side"
    )  # fmt: skip
    draws: int = Field(
        19,
        ge=3,
        description="draws of every start with chance in it, from the recipe's seed on; each costs one decomposition per matrix. With D "
        "draws one more lies within their range with probability (D - 1) / (D + 1)",
    )
    rank: int = Field(16, ge=1, description="rank r of the adapters")
    alpha: float = Field(16.0, gt=0, description="adapters count alpha / rank times")
    parts: list[Literal["q", "k", "v", "o", "gate", "up", "down"]] = Field(
        ["q", "k", "v", "o", "gate", "up", "down"], min_length=1, description="linear maps of every layer that are analysed"
    )  # fmt: skip
    embeddings: bool = Field(False, description="embedding and LM head too, where they are not tied")
    svd: Literal["exact", "randomized"] = Field(
        "exact", description="how matrices are decomposed; `randomized` is faster on large ones, and gives energy up to the largest rank"
    )  # fmt: skip


@dataclass(frozen=True)
class Start:
    """A start, its method with the options that make it, and how often it is drawn."""

    name: str
    method: Method
    cfg: LoraConfig
    draws: int

    def pairs(self, run: Run, draw: int = 0) -> Mapping[Key, LowRank] | None:
        """What the method trains from, given the recipe's seed + draw."""
        assert self.method.start is not None
        gen = Generator().manual_seed(run.recipe.seed + draw)
        return self.method.start(run.source, run.target, run.task, self.cfg, gen, style=run.style)


def check(run: Run, cfg: ParametricConfig) -> None:
    """Raise unless options and ranks fit, Seeking can start on the pair, and there are examples to locate with."""
    trains_adapters = isinstance(run.options, LoraConfig)
    if trains_adapters:
        twice = [name for name in LORA_OPTIONS if name in cfg.model_fields_set and hasattr(run.options, name)]
        if twice:
            raise ConfigError(
                f"analysis.{twice[0]} is given, but method {run.method.name!r} of the recipe has that option itself; use --set method.{twice[0]}=..."
            )
    if min(cfg.ranks) < 1 or len(set(cfg.ranks)) < len(cfg.ranks):
        raise ConfigError(f"analysis.ranks is {cfg.ranks}; name ranks of at least 1, each once")
    try:
        check_pair(run.source, run.target, _seeking(run, cfg))
    except PktError as e:
        if trains_adapters:
            raise
        raise type(e)(str(e).replace("method.", "analysis.")) from None  # they are options of the analysis here
    if not run.task.location:
        raise DataError(f"{run.task.name}: there is no example to locate with: the extract split is empty")
    check_comparable(run.source, run.target, run.task, _seeking(run, cfg), run.style)


def decides(run: Run, cfg: ParametricConfig) -> list[Any]:
    """The data that blocks are located with."""
    return location_key(run.task, _seeking(run, cfg))


@analysis(config=ParametricConfig, paper="arXiv:2505.14436", version=1, decides=decides, check=check)
def parametric(run: Run, cfg: ParametricConfig, gen: Generator) -> Result:
    """How the starts of adapters lie to the target's own weights: cosines, angles, energy kept per rank."""
    starts, left_out = _starts(run, cfg)
    energy, sweep = _by_rank(run, cfg, starts)
    cosines, angles = _as_trained(run, starts)
    chance = chance_rows(angles, gen)
    against = random_rows(cosines, angles, _as_many_outside)
    predictions = prediction_rows(cosines)
    tables = {
        "modules": module_rows(cosines),
        "predictions": predictions,
        "against_random": against,
        "cosines": cosines,
        "angles": angles,
        "chance": chance,
        "energy": energy,
        "ranks": sweep,
    }
    said = [*notes(cosines, sweep, cfg.draws), *left_out]
    if isinstance(run.options, LoraConfig):
        own = ", ".join(f"{name} {getattr(run.options, name)}" for name in LORA_OPTIONS if hasattr(run.options, name))
        said.append(
            f"The adapters' options are those of the recipe's method {run.method.name}, and not the analysis's own of the same names: {own}."
        )
    return Result(sentence(predictions, against, cfg.draws), tables, said)


def _starts(run: Run, cfg: ParametricConfig) -> tuple[list[Start], list[str]]:
    """The starts that the pair allows, and why others are left out."""
    found, left_out = [], []
    for name, (method, more) in STARTS.items():
        options = _options(run, cfg, METHODS.get(method).config, more)
        if name == "seeking_coupled":
            assert isinstance(options, SourceStartConfig)
            try:
                check_pair(run.source, run.target, options)
            except UnsupportedModelError as e:
                left_out.append(f"Seeking with coupled blocks is left out: {e}")
                continue
        found.append(Start(name, METHODS.get(method), options, cfg.draws if name in DRAWN else 1))
    return found, left_out


def _seeking(run: Run, cfg: ParametricConfig) -> SourceStartConfig:
    """Options of Seeking as published."""
    options = _options(run, cfg, SourceStartConfig, {"blocks": "matrix"})
    assert isinstance(options, SourceStartConfig)
    return options


def _options(run: Run, cfg: ParametricConfig, fields: type[Any], more: Mapping[str, str]) -> LoraConfig:
    """Options of a method that trains adapters: the recipe's as far as its own method does, else the analysis's.

    Args: fields: the method's config class. more: options that stand in any case.
    """
    given = {name: getattr(cfg, name) for name in LORA_OPTIONS}
    if isinstance(run.options, LoraConfig):
        given |= run.options.model_dump()
    made = fields(**{name: value for name, value in {**given, **more}.items() if name in fields.model_fields})
    assert isinstance(made, LoraConfig)
    return made


def _as_trained(run: Run, starts: list[Start]) -> tuple[list[Row], list[Row]]:
    """Cosines and angles of what methods train from, one draw and one weight in memory at a time."""
    target = run.target
    cfg = next(start.cfg for start in starts if isinstance(start.cfg, PissaConfig))
    spaces, fixed = {}, Generator().manual_seed(0)
    for key in adapted(target, cfg):
        weight_RC = target.part(*key).to(target.torch_device)
        space = low_rank(weight_RC, cfg.rank, split="both", method=cfg.svd, gen=fixed)
        spaces[key] = space, float(space.entries().double().norm() / weight_RC.double().norm().cpu())
    cosines, angles = [], []
    for start in starts:
        for draw in range(start.draws):
            pairs = start.pairs(run, draw)
            for key, (space, kept) in spaces.items():
                at = {"init": start.name, "draw": draw, "layer": key[0], "module": key[1]}
                weight_RC = target.part(*key).to(target.torch_device)
                pair = pairs[key] if pairs is not None else LowRank(space.a, torch.zeros_like(space.b))
                product_RC = start.cfg.scaling * pair.entries().to(weight_RC.device)
                found = start_cosines(weight_RC, product_RC)
                cosines.append(at | cosine_row(start.name, len(pair.a), found, kept))
                for side, ours, theirs in (("left", pair.b, space.b), ("right", pair.a.T, space.a.T)):
                    angles.append(at | angle_row(side, ours, theirs, is_zero=found.own is None))
    return cosines, angles


def _by_rank(run: Run, cfg: ParametricConfig, starts: list[Start]) -> tuple[list[Row], list[Row]]:
    """Energy kept and cosines by rank, from one decomposition of every matrix that a start approximates."""
    target, energy, sweep = run.target, [], []
    norms: dict[tuple[Key, int], float] = {}  # of Seeking's start, which noise is given too
    for start in starts:
        if start.name not in OF_BLOCKS:
            continue
        assert isinstance(start.cfg, PissaConfig | SourceStartConfig)
        svd, fixed = start.cfg.svd, Generator().manual_seed(0)
        scale = 1.0 if start.name == "pissa" else start.cfg.scaling
        ranks = sorted({*cfg.ranks, start.cfg.rank})
        for key, block_RC in _blocks(run, start):
            at = {"layer": key[0], "module": key[1]}
            matrix = {"matrix": "target" if start.name == "pissa" else start.name, **at}
            smaller = min(block_RC.shape)
            size = smaller if svd == "exact" else min(smaller, ranks[-1])
            wide = low_rank(block_RC.to(target.torch_device), size, split="left", method=svd, gen=fixed)
            kept = energy_kept(wide.b.double().norm(dim=0), float(block_RC.double().square().sum()))
            energy += [matrix | {"rank": rank, "kept": float(kept[rank - 1])} for rank in _doubling(size)]
            weight_RC = target.part(*key)
            for rank in (r for r in ranks if r <= smaller):
                product_RC = scale * LowRank(wide.a[:rank], wide.b[:, :rank]).entries().double()
                if start.name == "random_init":
                    product_RC *= norms[key, rank] / product_RC.norm()
                elif start.name == "seeking":
                    norms[key, rank] = float(product_RC.norm())
                root = float(kept[rank - 1].sqrt())
                found = cosine_row(start.name, rank, start_cosines(weight_RC, product_RC), root)
                sweep.append({"init": start.name, **at, **found})
    return energy, sweep


def _blocks(run: Run, start: Start) -> Iterator[tuple[Key, Tensor]]:
    """The matrix that each of a start's products is the best approximation of, as its method reads it."""
    if start.name == "pissa":
        yield from ((key, run.target.part(*key)) for key in adapted(run.target, start.cfg))
        return
    gen = fork(Generator().manual_seed(run.recipe.seed))
    source = RandomSource(run.source, training_seed(gen)) if start.name == "random_init" else run.source
    assert isinstance(start.cfg, SourceStartConfig)
    found = locate_blocks(run.source, run.target, run.task, start.cfg, run.style)
    yield from source_blocks(source, run.target, found, start.cfg, gen)


def _doubling(size: int) -> list[int]:
    """1, 2, 4, ... and the size itself."""
    return [*(2**i for i in range(size.bit_length()) if 2**i < size), size]


def _as_many_outside(outside: int, matrices: int, chance: float) -> float:
    from scipy.stats import binom

    return float(binom.sf(outside - 1, matrices, chance))
