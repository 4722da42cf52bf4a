"""LoRA with its ordinary start: what Seeking's fine-tuning gives without a source."""

from __future__ import annotations

from torch import Generator

from pkt.align.lora import LoraConfig, check_adapters, tune_lora
from pkt.inject.delta import Delta
from pkt.methods.base import method
from pkt.models.lm import LM
from pkt.tasks.base import Task
from pkt.tasks.losses import encode_all


def requires(source: LM, target: LM, cfg: LoraConfig) -> None:
    """Any target, with `rank` at most the smaller side of every adapted matrix; one that parts share (Phi-3) takes all of them or none.
    Nothing of the source."""
    check_adapters(target, cfg)


def start(source: LM, target: LM, task: Task, cfg: LoraConfig, gen: Generator, *, style: str) -> None:
    """peft's own: A is random and B is zero, so that `B0 A0` is zero."""


@method(
    config=LoraConfig,
    kind="baseline",
    paper="arXiv:2106.09685",
    requires=requires,
    splits=("train",),
    start=start,
    reads_source=False,
    trains_copy=True,
    learning_rate="lr",
)
def lora(source: LM, target: LM, task: Task, cfg: LoraConfig, gen: Generator, *, style: str) -> Delta:
    """Train adapters that start at zero on the train split."""
    examples = encode_all(task.split("train"), style, target, loss_on_prompt=cfg.loss_on_prompt)
    delta = tune_lora(target, examples, cfg, gen)
    return Delta(delta.changes, delta.provenance | {"labels": len(examples)})
