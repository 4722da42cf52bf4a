"""Direct: located source slices, cut or padded to the target's width, put in without any alignment.

The baseline that shows what alignment is for: unaligned injection collapses (arXiv:2505.14436, arXiv:2510.24208).

1. Layers and neurons are located and paired as in LaTen (`pkt.extract.location`).
2. A source slice wider than the target loses its last entries; a narrower one gets zeros at its end.
3. `replace`: the change is the slice, times `scale`, minus the target's own line. `add`: it is the slice times `scale`.

Nothing is trained. L layers, K neurons per layer, Ds and Dt widths of source and target.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Generator, Tensor
from torch.nn import functional

from pkt.errors import DataError
from pkt.extract.location import (
    RANDOM_NEURONS,
    LocationConfig,
    check_pair,
    counts,
    describe_layers,
    locate,
    located_neurons,
    location_key,
    measure,
    ordered_scores,
    picked,
)
from pkt.extract.pairing import pairing_of
from pkt.extract.slices import place, read_slices
from pkt.inject.delta import Delta
from pkt.methods.base import method
from pkt.models.lm import LM
from pkt.tasks.base import Task


class DirectConfig(LocationConfig):
    """Options of the direct transfer."""

    mode: Literal["replace", "add"] = Field(
        "replace", description="`replace` the target's lines by the source's, or `add` the source's to them"
    )
    scale: float = Field(1.0, gt=0, description="factor on the source's slices")


def requires(source: LM, target: LM, cfg: DirectConfig) -> None:
    """A source with at least as many layers as the target, and per layer as many neurons as are chosen in the target; with
    `locator: query_neurons`, models without capped logits (not Gemma 2). Tokenizers and
    families may differ."""
    check_pair(source, target, cfg, cfg.transfer_rate)


@method(
    config=DirectConfig,
    kind="baseline",
    paper="arXiv:2505.14436",
    requires=requires,
    splits=("extract",),
    locate=measure,
    location=location_key,
    located_neurons=located_neurons,
    random_neurons=RANDOM_NEURONS,
)
def direct(source: LM, target: LM, task: Task, cfg: DirectConfig, gen: Generator, *, style: str) -> Delta:
    """Put located source slices into the target as they are, cut or padded to its width."""
    if not task.location:
        raise DataError(f"{task.name}: direct needs at least one extract example; the split is empty")
    scores = ordered_scores(source, target, task, cfg, style, gen)
    drawn = int(torch.randint(len(task.location), (), generator=gen)) if cfg.locate == "per_example" else None
    pairing = pairing_of(source, target, task, cfg, style)
    at = locate(source, target, picked(scores, drawn), counts(target.dims, cfg.transfer_rate), pairing)
    changes = {part: cfg.scale * fitted(slices.cpu(), target.dims.width) for part, slices in at.slices.items()}
    if cfg.mode == "replace":
        own = read_slices(target, at.target)
        changes = {part: change - own[part] for part, change in changes.items()}
    found = {
        "layers": describe_layers(scores, at, pairing, cfg, drawn),
        "trained_parameters": 0,
        "labels": len(task.location),
        "steps": 0,
    }
    return Delta(place(changes, at.target, target.dims).detach().changes, found)


def fitted(slices_LKDs: Tensor, width: int) -> Tensor:
    """The first `width` entries of every slice, (L, K, width); zeros stand in for those that it lacks."""
    return functional.pad(slices_LKDs[..., :width], (0, max(0, width - slices_LKDs.shape[-1])))
