"""Seeking with noise for a source: the same layers, the same norms, no knowledge. Seeking's control arm as a method."""

from __future__ import annotations

from typing import Any

from torch import Generator

from pkt.align.finetune import training_seed
from pkt.align.lora import tune_lora
from pkt.align.source_start import (
    LocatedBlocks,
    SourceStartConfig,
    check_pair,
    locate_blocks,
    location_key,
    source_start,
)
from pkt.inject.changes import LowRank
from pkt.inject.delta import Delta, Key
from pkt.methods.base import fork, method
from pkt.models.controls import RandomSource
from pkt.models.lm import LM
from pkt.tasks.base import Task
from pkt.tasks.losses import encode_all


def requires(source: LM, target: LM, cfg: SourceStartConfig) -> None:
    """What Seeking needs, for its start has the norms of the source's blocks."""
    check_pair(source, target, cfg)


def start(
    source: LM, target: LM, task: Task, cfg: SourceStartConfig, gen: Generator, *, style: str
) -> dict[Key, LowRank]:
    """Noise, decomposed, with the norms of Seeking's start."""
    return _begin(source, target, task, cfg, gen, style)[1]


def _begin(
    source: LM, target: LM, task: Task, cfg: SourceStartConfig, gen: Generator, style: str
) -> tuple[LocatedBlocks, dict[Key, LowRank]]:
    starting = fork(gen)
    noise = RandomSource(source, training_seed(starting))
    found = locate_blocks(source, target, task, cfg, style)
    return found, source_start(noise, target, found, cfg, starting)


@method(
    config=SourceStartConfig,
    kind="baseline",
    paper="arXiv:2310.11451",
    requires=requires,
    splits=("extract", "train"),
    locate=locate_blocks,
    location=location_key,
    start=start,
    reads_source=False,
    trains_copy=True,
    without={"wrong_task": "random_init has noise in every block"},
    learning_rate="lr",
)
def random_init(source: LM, target: LM, task: Task, cfg: SourceStartConfig, gen: Generator, *, style: str) -> Delta:
    """Start adapters at noise with the norms of Seeking's start, then fine-tune them."""
    found, begin = _begin(source, target, task, cfg, gen, style)
    examples = encode_all(task.split("train"), style, target, loss_on_prompt=cfg.loss_on_prompt)
    delta = tune_lora(target, examples, cfg, fork(gen), begin)
    provenance: dict[str, Any] = {"labels": len(task.location) + len(examples)}
    if other := found.described():
        provenance["blocks"] = {"layers": found.layers, **other}
    return Delta(delta.changes, delta.provenance | provenance)
