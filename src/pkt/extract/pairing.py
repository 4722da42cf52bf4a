"""Pairing of layers, shared by all methods that pair those of a source with those of a target: the option, and what it rests on.

Layers are compared on the real source, whatever a control arm shows in its place, and on the examples to locate with.

S source layers, T target layers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor

from pkt.config import Section
from pkt.extract.layers import LAYER_MAPS, depth, similarity, top_scores
from pkt.memo import remembered
from pkt.models.lm import LM
from pkt.similarity.layers import POSITIONS, layer_similarity, layer_similarity_key
from pkt.similarity.positions import draw_positions
from pkt.tasks.base import Task

PUBLISHED = "top_scores"


def _is_published(name: str) -> bool:
    return name == PUBLISHED


class LayerMapOptions(Section):
    """The option of a method that pairs layers; its config derives from this."""

    # left out where it is the default: hashes of runs from before there was a choice stay as they are
    layer_map: Literal["top_scores", "depth", "similarity"] = Field(
        "top_scores",
        exclude_if=_is_published,
        description="which source layer gives to which target layer, always in depth order: "
        + "; ".join(f"`{name}`, {what}" for name, what in LAYER_MAPS.items()),
    )


@dataclass(frozen=True)
class Pairing:
    """A layer map by name, with what it goes by beside scores."""

    name: str = PUBLISHED
    alike: dict[str, Tensor] = field(default_factory=dict)
    """Kind -> (S, T) debiased CKA; for `similarity` between models of unequal depth."""

    @property
    def by_scores(self) -> bool:
        """Whether scores decide; else they play no part."""
        return _is_published(self.name)

    def layers(self, scores_S: Tensor, num_target: int, source: str, kinds: Sequence[str]) -> list[int]:
        """The source layer of every target layer.

        Args:
            scores_S: one score per source layer. source: its name. kinds: by whose outputs layers are compared, summed.

        Raises:
            UnsupportedModelError: the source has fewer layers than the target, or layers cannot be compared.
        """
        if self.by_scores:
            return top_scores(scores_S, num_target, source)
        if self.alike:
            return similarity(self.compared(kinds), source)
        return depth(len(scores_S), num_target, source)  # between models of equal depth the only one

    def compared(self, kinds: Sequence[str]) -> Tensor:
        """(S, T) similarities, summed over kinds."""
        return torch.stack([self.alike[kind].double() for kind in kinds]).sum(0)

    def described(self, layers: Sequence[int], kinds: Sequence[str]) -> dict[str, Any]:
        """What a delta's provenance says of it, but for the published one: the map's name and, where layers were compared, how alike those
        of each pair are, beside pairs of equal relative depth.

        Args:
            layers: what `layers` found. kinds: as there.
        """
        if self.by_scores:
            return {}
        found: dict[str, Any] = {"layer_map": self.name}
        if self.alike:
            alike_ST = self.compared(kinds)
            num_source, num_target = alike_ST.shape
            every = range(num_target)
            found["similarity"] = alike_ST[list(layers), every].tolist()
            found["similarity_at_depth"] = alike_ST[depth(num_source, num_target, ""), every].tolist()
        return found


def compares(source: LM, target: LM, cfg: LayerMapOptions) -> bool:
    """Whether layers have to be compared: not between models of equal depth, which have but one map."""
    return cfg.layer_map == "similarity" and source.dims.layers != target.dims.layers


def pairing_of(source: LM, target: LM, task: Task, cfg: LayerMapOptions, style: str) -> Pairing:
    """The layer map that the options name. What `similarity` needs is recorded, or read from the memo, one model in memory at a time."""
    if not compares(source, target, cfg):
        return Pairing(cfg.layer_map)
    parts = [*source.identity, *target.identity, source.dtype, target.dtype, style, layer_similarity_key(task)]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    path = source.memo / f"similarity-{digest[:16]}.safetensors" if source.memo else None
    header = {"source": source.name, "target": target.name, "examples": str(len(task.location)), "style": style}
    alike = remembered(path, header, lambda: layer_similarity(source.real, target, task, style))
    return Pairing(cfg.layer_map, alike)


def similarity_key(task: Task, cfg: LayerMapOptions) -> list[Any]:
    """What decides the similarities that are kept, beside models and prompt style; nothing where no map asks for them."""
    return ["similarity", *layer_similarity_key(task)] if cfg.layer_map == "similarity" else []


def check_comparable(source: LM, target: LM, task: Task, cfg: LayerMapOptions, style: str) -> None:
    """Raise PktError where layers have to be compared, but the examples to locate with have too few token positions for that."""
    if compares(source, target, cfg):
        draw_positions((source, target), task.location, style, POSITIONS, Generator().manual_seed(0))
