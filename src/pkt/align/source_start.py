"""The start of an adapter made from blocks of a source: what Seeking and its control with noise share.

r rank, R rows, C columns.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor

from pkt.align.lora import LoraConfig, adapted, adapted_outside, check_adapters
from pkt.align.low_rank import low_rank
from pkt.errors import UnsupportedModelError
from pkt.extract.blocks import VERSION, Blocks, Corner, check_sizes, find_blocks, shapes
from pkt.extract.layers import check_depth
from pkt.extract.pairing import LayerMapOptions, Pairing, pairing_of, similarity_key
from pkt.inject.changes import LowRank
from pkt.inject.delta import Key, key_name, key_named
from pkt.memo import remembered
from pkt.models.families import KINDS, LINEAR
from pkt.models.lm import LM
from pkt.models.tokens import check_same_tokens
from pkt.tasks.base import Task, fingerprint

log = logging.getLogger(__name__)


class SourceStartConfig(LoraConfig, LayerMapOptions):
    """Options of a start from blocks of a source; the defaults are Seeking's published values."""

    blocks: Literal["matrix", "coupled", "random"] = Field(
        "matrix",
        description="which block of a source matrix: `matrix`, the most sensitive, each by itself, as published; `coupled`, the same FFN "
        "neurons and whole heads in all matrices of a layer; `random` (a control; layers go by sensitivity)",
    )
    layers_at_once: int = Field(
        0, ge=0, description="source layers whose sensitivities are in memory at a time; 0 means all, in one pass"
    )
    svd: Literal["exact", "randomized"] = Field(
        "exact", description="how blocks are decomposed; `randomized` is faster on large ones"
    )


LOCATE_OPTIONS = ("parts", "embeddings", "rank", "svd", "layer_map")
"""Options that decide what `locate_blocks` finds."""


@dataclass(frozen=True)
class LocatedBlocks:
    """A source's layers and blocks, and the norm of the best approximation of each block, by target matrix."""

    blocks: Blocks
    norms: dict[Key, float]
    layers: list[int]
    """The source layer of every target layer."""
    pairing: Pairing

    def described(self) -> dict[str, Any]:
        """The layer map for a delta's provenance; nothing of the published one."""
        return self.pairing.described(self.layers, list(KINDS))


def check_pair(source: LM, target: LM, cfg: SourceStartConfig) -> None:
    """Raise unless ranks fit the target, its parts have matrices of their own that fit into the source's, layers can be paired, and
    embeddings are about the same tokens."""
    check_adapters(target, cfg)
    shared = next((part for _, part in adapted(target, cfg) if "+" in part), None)
    if shared:
        apart = [part for part in LINEAR if target.family.whole(part) == part]
        raise UnsupportedModelError(
            f"{target.name}: {shared} share one matrix in {target.config.model_type}, of which no source matrix has a block; choose a target "
            f"where they are apart, or set method.parts={json.dumps(apart)}"
        )
    check_depth(source.dims.layers, target.dims.layers, source.name)
    check_sizes(source, target, adapted(target, cfg), coupled=cfg.blocks == "coupled")
    if adapted_outside(target, cfg):
        check_same_tokens(source, target, "an adapter on the embeddings (method.embeddings)")


def location_key(task: Task, cfg: SourceStartConfig) -> list[Any]:
    """What decides `locate_blocks`, beside models and prompt style."""
    options = cfg.model_dump(include=set(LOCATE_OPTIONS)) | {
        "coupled": cfg.blocks == "coupled"
    }  # random ones need layers only
    return [VERSION, fingerprint(task.location), options, *similarity_key(task, cfg)]


def locate_blocks(source: LM, target: LM, task: Task, cfg: SourceStartConfig, style: str) -> LocatedBlocks:
    """Layers and blocks of the source by sensitivity on the examples to locate with, kept in its memo."""
    keys, pairing = adapted(target, cfg), pairing_of(source, target, task, cfg, style)

    def paired(scores: Tensor) -> list[int]:
        return pairing.layers(scores, target.dims.layers, source.name, list(KINDS))

    sizes = {f"{layer} {part}": shape for (layer, part), shape in shapes(target, keys).items()}
    parts = [*source.identity, source.dtype, target.dims.layers, sizes, style, location_key(task, cfg)]
    if not pairing.by_scores:
        parts.append(paired(torch.zeros(source.dims.layers)))
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    path = source.memo / f"blocks-{digest[:16]}.safetensors" if source.memo else None

    def make() -> dict[str, Tensor]:
        begun = time.perf_counter()
        coupled = cfg.blocks == "coupled"
        found = find_blocks(
            source, target, keys, task.location, style, coupled=coupled, layers_at_once=cfg.layers_at_once
        )
        real = _norms(source.real, target, found.corners, paired(found.layers), cfg)
        log.info("found blocks of %s in %.1f s", source.name, time.perf_counter() - begun)
        norms = {f"norm.{key_name(key)}": norm for key, norm in real.items()}
        corners = {f"corner.{key_name(key)}": torch.tensor(corner) for key, corner in found.corners.items()}
        return {"layers": found.layers, **norms, **corners}

    header = {"model": source.name, "weights": source.digest, "examples": str(len(task.location)), "style": style}
    kept = remembered(path, header, make)
    corners = {
        key_named(n.removeprefix("corner.")): (int(t[0]), int(t[1])) for n, t in kept.items() if n.startswith("corner.")
    }
    norms = {key_named(n.removeprefix("norm.")): float(t) for n, t in kept.items() if n.startswith("norm.")}
    return LocatedBlocks(Blocks(kept["layers"], corners), norms, paired(kept["layers"]), pairing)


def source_start(source: LM, target: LM, found: LocatedBlocks, cfg: SourceStartConfig, gen: Generator) -> dict[Key, LowRank]:  # fmt: skip
    """`B0 = U S`, `A0 = V^T` of every adapted matrix, from the source's blocks.

    Each `B0 A0` has the norm that the real source's has, which matters for control arms alone: noise has less of its norm in
    few directions than weights have.
    """
    corners = _corners(source, target, found, cfg, gen)
    start = _decompose(_blocks(source, target, corners, found.layers, cfg), target, cfg, gen)
    norms = found.norms
    if cfg.blocks == "random":
        if source is source.real:
            return start
        real = _norms(source.real, target, corners, found.layers, cfg)
        norms = {key: float(norm) for key, norm in real.items()}
    return {key: LowRank(pair.a, pair.b * (norms[key] / _norm(pair))) for key, pair in start.items()}


def source_blocks(
    source: LM, target: LM, found: LocatedBlocks, cfg: SourceStartConfig, gen: Generator
) -> Iterator[tuple[Key, Tensor]]:
    """The block (R, C) of the source that each adapted matrix of the target starts from, one in memory at a time."""
    return _blocks(source, target, _corners(source, target, found, cfg, gen), found.layers, cfg)


def _corners(source: LM, target: LM, found: LocatedBlocks, cfg: SourceStartConfig, gen: Generator) -> Mapping[Key, Corner]:  # fmt: skip
    """Where the blocks are: where they were located, or drawn."""
    return _anywhere(source, target, cfg, gen) if cfg.blocks == "random" else found.blocks.corners


def _blocks(
    source: LM, target: LM, corners: Mapping[Key, Corner], layers: list[int], cfg: SourceStartConfig
) -> Iterator[tuple[Key, Tensor]]:
    for (layer, part), shape in shapes(target, adapted(target, cfg)).items():
        at = None if layer is None else layers[layer]
        yield (layer, part), source.part_block(at, part, corners[at, part], shape)


def _decompose(
    blocks: Iterable[tuple[Key, Tensor]], target: LM, cfg: SourceStartConfig, gen: Generator
) -> dict[Key, LowRank]:
    """The best approximation of rank r of each block, by target matrix."""
    return {
        key: low_rank(block_RC.to(target.torch_device), cfg.rank, split="left", method=cfg.svd, gen=gen)
        for key, block_RC in blocks
    }


def _norms(source: LM, target: LM, corners: Mapping[Key, Corner], layers: list[int], cfg: SourceStartConfig) -> dict[Key, Tensor]:  # fmt: skip
    """The norm of the best approximation of each block, by target matrix."""
    fixed = torch.Generator().manual_seed(0)  # of the randomised decomposition
    start = _decompose(_blocks(source, target, corners, layers, cfg), target, cfg, fixed)
    return {key: _norm(pair) for key, pair in start.items()}


def _anywhere(source: LM, target: LM, cfg: SourceStartConfig, gen: Generator) -> dict[Key, Corner]:
    """Corners of blocks drawn at random, of every source layer. Embeddings keep their tokens."""
    found: dict[Key, Corner] = {}
    wanted = {key: shape for key, shape in shapes(target, adapted(target, cfg)).items() if key[0] in (None, 0)}
    for (outside, part), shape in wanted.items():
        for layer in range(source.dims.layers) if outside is not None else (None,):
            have = source.shape(layer, part)
            room = [a - b + 1 for a, b in zip(have, shape, strict=True)]
            row, column = (int(torch.randint(n, (), generator=gen)) for n in room)
            found[layer, part] = (0 if layer is None else row, column)
    return found


def _norm(pair: LowRank) -> Tensor:
    return pair.entries().double().norm().cpu()
