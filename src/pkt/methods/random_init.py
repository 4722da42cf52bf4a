"""Seeking with noise for a source: the same layers, the same norms, no knowledge. Seeking's control arm as a method."""

from __future__ import annotations

from typing import Any

from torch import Generator

from pkt.align.finetune import training_seed
from pkt.align.lora import tune_lora
from pkt.align.source_start import SourceStartConfig, check_pair, locate_blocks, location_key, source_start
from pkt.inject.delta import Delta
from pkt.methods.base import fork, method
from pkt.models.controls import RandomSource
from pkt.models.lm import LM
from pkt.tasks.base import Task
from pkt.tasks.losses import encode_all


def requires(source: LM, target: LM, cfg: SourceStartConfig) -> None:
    """What Seeking needs, for its start has the norms of the source's blocks."""
    check_pair(source, target, cfg)


@method(
    config=SourceStartConfig,
    kind="baseline",
    paper="arXiv:2310.11451",
    requires=requires,
    splits=("extract", "train"),
    locate=locate_blocks,
    location=location_key,
    reads_source=False,
    trains_copy=True,
    without={"wrong_task": "random_init has noise in every block"},
    learning_rate="lr",
)
def random_init(source: LM, target: LM, task: Task, cfg: SourceStartConfig, gen: Generator, *, style: str) -> Delta:
    """Start adapters at noise with the norms of Seeking's start, then fine-tune them."""
    starting, training = fork(gen), fork(gen)
    noise = RandomSource(source, training_seed(starting))
    found = locate_blocks(source, target, task, cfg, style)
    examples = encode_all(task.split("train"), style, target, loss_on_prompt=cfg.loss_on_prompt)
    delta = tune_lora(target, examples, cfg, training, source_start(noise, target, found, cfg, starting))
    provenance: dict[str, Any] = {"labels": len(task.location) + len(examples)}
    if other := found.described():
        provenance["blocks"] = {"layers": found.layers, **other}
    return Delta(delta.changes, delta.provenance | provenance)
